//! The command line is a contract: the real binary, end to end, in a directory of its own.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use tempfile::TempDir;

/// A directory in which commands run. Everything is named relative to it.
struct Place {
    dir: TempDir,
}

/// What a command left.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_basalt"));
        command.args(line.split_whitespace());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
            .env_remove("RUST_LOG")
            .env("BASALT_CONTROL", "control.sock");
        command
    }

    fn run(&self, line: &str) -> Ran {
        let output = self.command(line).output().unwrap();
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a command that works, and returns what it printed.
    fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, Some(0), "{line}: {ran:?}");
        assert_eq!(ran.stderr, "", "{line}");
        ran.stdout
    }

    fn json(&self, line: &str) -> Value {
        let text = self.ok(&format!("{line} --json"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line}: {e}: {text}"))
    }

    /// Runs a command that fails, in both forms, and returns its one line.
    fn fails(&self, line: &str, kind: &str) -> String {
        let json = self.run(&format!("{line} --json"));
        assert_eq!(json.code, Some(1), "{line}: {json:?}");
        let error: Value = serde_json::from_str(last_line(&json.stderr)).unwrap();
        assert_eq!(error["error"]["kind"], kind, "{line}: {error}");
        assert!(error["error"]["message"].is_string(), "{line}: {error}");
        let ran = self.run(line);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (Some(1), ""),
            "{line}: {ran:?}"
        );
        let said = last_line(&ran.stderr);
        assert!(said.starts_with("basalt: "), "{line}: {ran:?}");
        said.to_owned()
    }

    /// Starts `serve` with the control socket where this place's commands look for it.
    fn serve(&self, line: &str) -> Daemon {
        let line = format!("serve {line} --control control.sock");
        let mut child = self
            .command(&line)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut banner = Vec::new();
        for said in BufReader::new(child.stdout.take().unwrap()).lines() {
            banner.push(said.unwrap());
            if banner
                .last()
                .is_some_and(|said| said.starts_with("export "))
            {
                return Daemon { child, banner };
            }
        }
        let mut why = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut why)
            .unwrap();
        child.wait().unwrap();
        panic!("{line} did not serve: {why}");
    }
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

/// A running `serve`; killed when dropped.
struct Daemon {
    child: Child,
    banner: Vec<String>,
}

impl Daemon {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn ended_by(mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap()
    }

    fn stop(self) {
        let status = self.ended_by(Signal::TERM);
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn the_quick_start_is_one_command() {
    let place = Place::new();
    let daemon = place.serve("demo.pool --create 64M --volume demo=16M");
    let socket = place.path("demo.pool.sock");
    let uri = format!("nbd+unix:///demo?socket={}", socket.display());
    let expected = [
        "serving demo.pool: 1 volume".to_owned(),
        format!("  {uri}"),
        format!("try:  nbdinfo '{uri}'"),
        format!(
            "export BASALT_CONTROL={}",
            place.path("control.sock").display()
        ),
    ];
    assert_eq!(daemon.banner, expected);
    assert!(socket.exists());
    let listed = place.ok("volume list");
    assert!(listed.contains("demo  16 MiB"), "{listed}");
    let status = place.json("status");
    assert_eq!(status["daemon"]["pid"], daemon.pid());
    assert_eq!(
        status["pool"]["path"],
        place.path("demo.pool").to_str().unwrap()
    );
    assert_eq!(status["pool"]["volumes"], 1);
    daemon.stop();
    assert!(!socket.exists() && !place.path("control.sock").exists());
    assert!(
        place
            .ok("check demo.pool")
            .starts_with("demo.pool: clean; 1 volume, ")
    );
}

#[test]
fn what_exists_is_opened_and_not_made_again() {
    let place = Place::new();
    place.serve("p --create 64M --volume a=16M").stop();
    let daemon = place.serve("p --create 1G --volume a=1M --volume b=8M");
    let sizes = place.json("volume list");
    assert_eq!(
        (&sizes[0]["size"], &sizes[1]["size"]),
        (&(16 << 20).into(), &(8 << 20).into())
    );
    assert_eq!(place.json("status")["pool"]["size"], 64 << 20);
    let status = daemon.ended_by(Signal::INT);
    assert_eq!(status.code(), Some(0), "{status}");
    place.ok("check p");
}

#[test]
fn the_settings_may_come_from_a_file() {
    let place = Place::new();
    let text = "pool = \"p\"\ncreate = \"64M\"\nvolume = [\"a=1M\", \"b=1M\"]\n\
                listen = [\"unix:one.sock\", \"tcp:127.0.0.1:0\"]\nworkers = 1\n";
    std::fs::write(place.path("c.toml"), text).unwrap();
    let daemon = place.serve("--config c.toml --volume c=1M");
    assert_eq!(daemon.banner[0], "serving p: 1 volume");
    assert!(
        daemon.banner[1].contains("/one.sock"),
        "{:?}",
        daemon.banner
    );
    assert!(
        daemon.banner[2].starts_with("  nbd://127.0.0.1:"),
        "{:?}",
        daemon.banner
    );
    daemon.stop();
    std::fs::write(place.path("c.toml"), "pool = \"p\"\nworker = 1\n").unwrap();
    let ran = place.run("serve --config c.toml");
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.stderr
            .contains("config c.toml: line 2: unknown field `worker`"),
        "{ran:?}"
    );
}

#[test]
fn a_volume_lives_from_create_to_delete() {
    let place = Place::new();
    assert!(
        place
            .ok("init p --size 64M")
            .starts_with("made pool p of 64 MiB\n")
    );
    let daemon = place.serve("p");
    assert_eq!(
        daemon.banner[1],
        "try:  basalt volume create demo --size 1G"
    );
    assert_eq!(place.ok("volume list"), "no volumes\n");
    assert_eq!(place.json("volume list"), serde_json::json!([]));
    assert_eq!(
        place.ok("volume create a --size 8M"),
        "created volume a of 8 MiB\n"
    );
    let made = place.json("volume create r --size 4M --reserve");
    assert_eq!(
        (&made["name"], &made["reserved"]),
        (&"r".into(), &true.into())
    );
    assert_eq!(
        place.ok("volume resize a --size 16M"),
        "volume a has 16 MiB now\n"
    );
    assert_eq!(place.ok("volume rename a b"), "renamed volume a to b\n");
    assert_eq!(place.ok("snapshot create b@s"), "created snapshot b@s\n");
    assert_eq!(
        place.ok("volume clone b@s c"),
        "created volume c from b@s\n"
    );
    assert_eq!(place.ok("volume clone b d"), "created volume d from b\n");
    assert_eq!(
        place.ok("volume rollback b@s"),
        "volume b is as b@s again\n"
    );
    let shown = place.json("volume show b");
    assert_eq!(
        (&shown["size"], &shown["snapshot_count"]),
        (&(16 << 20).into(), &1.into())
    );
    assert_eq!(shown["snapshots"][0]["name"], "s");
    assert_eq!(place.json("volume show c")["origin"], "b@s");
    let names: Vec<_> = place.json("volume list").as_array().unwrap().clone();
    let names: Vec<_> = names
        .iter()
        .map(|volume| volume["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["b", "c", "d", "r"]);
    assert_eq!(place.ok("volume delete c"), "deleted volume c\n");
    assert_eq!(
        place.json("volume delete d"),
        serde_json::json!({"deleted": "d"})
    );
    place.ok("volume delete b");
    let listed = place.ok("volume list");
    assert!(listed.contains("b (deleted)"), "{listed}");
    daemon.stop();
    place.ok("check p");
}

#[test]
fn snapshots_are_cut_listed_compared_and_deleted() {
    let place = Place::new();
    let daemon = place.serve("p --create 64M --volume a=1M --volume b=1M");
    assert_eq!(place.ok("snapshot list"), "no snapshots\n");
    let cut = place.json("snapshot create a@1 b@1");
    assert_eq!(
        (&cut[0]["volume"], &cut[1]["volume"]),
        (&"a".into(), &"b".into())
    );
    assert_eq!(place.ok("snapshot create a@2"), "created snapshot a@2\n");
    let listed = place.json("snapshot list");
    let names = listed.as_array().unwrap().iter();
    let names: Vec<_> = names
        .map(|s| format!("{}@{}", s["volume"], s["name"]))
        .collect();
    assert_eq!(names.join(" ").replace('"', ""), "a@1 b@1 a@2");
    assert_eq!(place.json("snapshot list b").as_array().unwrap().len(), 1);
    assert_eq!(place.ok("snapshot diff a@1 a@2"), "");
    assert_eq!(place.json("snapshot diff a@1 a"), serde_json::json!([]));
    assert_eq!(place.ok("snapshot delete a@1"), "deleted snapshot a@1\n");
    assert_eq!(place.ok("snapshot list a").lines().count(), 2);
    daemon.stop();
    place.ok("check p");
}

#[test]
fn a_scrub_is_started_followed_and_stopped() {
    let place = Place::new();
    let daemon = place.serve("p --create 64M --volume a=1M");
    let done = place.json("scrub start --wait");
    assert_eq!(
        (&done["running"], &done["rounds"]),
        (&false.into(), &1.into())
    );
    assert_eq!(done["findings"], serde_json::json!([]));
    assert!(place.ok("scrub stop").starts_with("not running, "));
    assert!(
        place
            .ok("scrub status")
            .contains("no damage; 1 round completed")
    );
    daemon.stop();
}

#[test]
fn names_are_taken_once_and_things_must_exist() {
    let place = Place::new();
    let daemon = place.serve("p --create 64M --volume a=8M");
    place.ok("snapshot create a@s");
    for line in [
        "volume create a --size 1M",
        "volume clone a@s a",
        "snapshot create a@s",
    ] {
        let said = place.fails(line, "already_exists");
        assert!(said.ends_with("; choose another name"), "{said}");
    }
    for line in [
        "volume show x",
        "volume resize x --size 1M",
        "volume rename x y",
        "volume clone x y",
        "volume clone a@x y",
        "volume rollback a@x",
        "volume delete x",
        "snapshot create x@s",
        "snapshot list x",
        "snapshot delete a@x",
        "snapshot diff a@x a",
        "snapshot diff a@s x",
    ] {
        let said = place.fails(line, "not_found");
        assert!(
            said.contains('x') && said.contains("basalt volume list"),
            "{line}: {said}"
        );
    }
    daemon.stop();
    place.ok("check p");
}

#[test]
fn sizes_out_of_range_are_refused() {
    let place = Place::new();
    let daemon = place.serve("p --create 64M --volume a=8M");
    let said = place.fails("volume create b --size 1E", "invalid_argument");
    assert!(said.contains('b'), "{said}");
    let said = place.fails("volume resize a --size 1E", "invalid_argument");
    assert!(said.contains('a'), "{said}");
    let said = place.fails("volume resize a --size 4M", "invalid_argument");
    assert!(said.contains('a'), "{said}");
    for (line, why) in [
        ("volume create b --size 0", "is zero"),
        ("volume create b --size -1", "is negative"),
        ("volume create b --size 16E", "too large"),
        ("volume create b --size ten", "not a number of bytes"),
    ] {
        let ran = place.run(line);
        assert_eq!(ran.code, Some(2), "{line}: {ran:?}");
        assert!(ran.stderr.contains(why), "{line}: {ran:?}");
    }
    assert_eq!(place.json("volume list").as_array().unwrap().len(), 1);
    daemon.stop();
}

#[test]
fn a_full_pool_refuses_what_needs_space() {
    let place = Place::new();
    let daemon = place.serve("p --create 64M --overcommit 1");
    let said = place.fails("volume create r --size 1G --reserve", "no_space");
    assert!(said.contains("basalt status"), "{said}");
    place.fails("volume create t --size 1G", "no_space");
    place.ok("volume create a --size 1M");
    daemon.stop();
    place.ok("check p");
}

#[test]
fn a_pool_is_open_once_and_the_second_is_told_who_has_it() {
    let place = Place::new();
    let daemon = place.serve("p --create 64M");
    let pid = format!("{}", daemon.pid());
    for line in [
        "serve p --control other.sock",
        "check p",
        "init p --size 64M --force",
    ] {
        let said = place.fails(line, "busy");
        assert!(said.contains(&pid), "{line}: pid {pid} is not in {said}");
        assert!(said.ends_with("; stop that process first"), "{said}");
    }
    place.ok("status");
    daemon.stop();
}

#[test]
fn a_control_socket_belongs_to_one_daemon() {
    let place = Place::new();
    let daemon = place.serve("p --create 64M");
    place.ok("init q --size 64M");
    let said = place.fails("serve q --control control.sock", "busy");
    assert!(
        said.contains("control.sock") && said.contains("--control"),
        "{said}"
    );
    place.ok("status");
    daemon.stop();
}

#[test]
fn sockets_of_a_daemon_that_was_killed_are_replaced() {
    let place = Place::new();
    let daemon = place.serve("p --create 64M --volume a=1M");
    let status = daemon.ended_by(Signal::KILL);
    assert_eq!(status.code(), None);
    assert!(place.path("control.sock").exists() && place.path("p.sock").exists());
    let said = place.fails("status", "unreachable");
    assert!(
        said.contains("control.sock") && said.contains("basalt serve"),
        "{said}"
    );
    let daemon = place.serve("p");
    assert_eq!(place.json("volume list")[0]["name"], "a");
    daemon.stop();
    place.ok("check p");
}

#[test]
fn what_is_there_is_not_overwritten_without_force() {
    let place = Place::new();
    std::fs::write(place.path("p"), "precious").unwrap();
    let said = place.fails("init p --size 64M", "already_exists");
    assert!(said.contains("--force"), "{said}");
    assert_eq!(std::fs::read(place.path("p")).unwrap(), b"precious");
    let ran = place.run("serve p --create 64M --control c.sock");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(std::fs::read(place.path("p")).unwrap(), b"precious");
    place.ok("init p --size 64M --force");
    place.ok("check p");
}

#[test]
fn a_pool_that_is_missing_or_cut_short_is_named() {
    let place = Place::new();
    let said = place.fails("serve p --control c.sock", "not_found");
    assert!(
        said.contains('p') && said.contains("--create SIZE"),
        "{said}"
    );
    let said = place.fails("check p", "not_found");
    assert!(said.contains("basalt init"), "{said}");
    place.ok("init p --size 64M");
    let file = std::fs::File::options()
        .write(true)
        .open(place.path("p"))
        .unwrap();
    file.set_len(32 << 20).unwrap();
    for line in ["serve p --control c.sock", "check p"] {
        let said = place.fails(line, "corrupt");
        assert!(said.contains('p'), "{said}");
    }
}

#[test]
fn a_pool_of_another_version_says_which() {
    let place = Place::new();
    place.ok("init p --size 64M");
    let mut pool = std::fs::read(place.path("p")).unwrap();
    let magic = pool[..8].to_vec();
    // Every superblock begins with the magic and the version.
    for block in pool
        .chunks_mut(4096)
        .filter(|block| block.starts_with(&magic))
    {
        block[8..12].copy_from_slice(&77u32.to_le_bytes());
    }
    std::fs::write(place.path("p"), pool).unwrap();
    for line in ["serve p --control c.sock", "check p"] {
        let said = place.fails(line, "unsupported");
        assert!(said.contains("version 77"), "{said}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let place = Place::new();
    let daemon = place.serve("p --create 64M --volume a=1M");
    let mut command = place.command("volume list");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    daemon.stop();
}
