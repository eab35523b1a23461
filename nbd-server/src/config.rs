//! The settings of `serve`: its flags, and the same names as keys of a TOML file.
use crate::serve::Listen;
use crate::size::Size;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, de};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What can be set. One definition for both, so that every key is a flag's name.
#[derive(clap::Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// The pool: a file or a block device
    #[arg(value_name = "POOL")]
    pub pool: Option<PathBuf>,
    /// Make the pool, of this size, if there is no such file; an existing pool is just opened
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub create: Option<Size>,
    /// Make this volume if there is none of that name; may be repeated
    #[arg(long, value_name = "NAME=SIZE")]
    pub volume: Vec<VolumeSize>,
    /// Serve NBD here; may be repeated [default: unix:POOL.sock]
    #[arg(long, value_name = "unix:PATH|tcp:HOST:PORT")]
    #[serde(deserialize_with = "listen_addresses")]
    pub listen: Vec<Listen>,
    /// Where to put the control socket; on the command line it is the global flag.
    #[arg(skip)]
    pub control: Option<PathBuf>,
    /// Refuse volumes that bring the sum of sizes above RATIO times the usable space
    /// [default: any number of volumes of any size]
    #[arg(long, value_name = "RATIO", value_parser = parse_ratio)]
    pub overcommit: Option<f64>,
    /// Worker threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// Serve without encryption or authentication on addresses beyond loopback
    #[arg(long)]
    pub i_know_this_network_can_read_and_write_my_data: bool,
}

impl Settings {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// One line that names the file, the place in it, and the key.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| format!("config {shown}: {e}"))?;
        Self::parse(&text).map_err(|e| format!("config {shown}: {e}"))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let settings: Self = toml::from_str(text).map_err(|e| {
            let line = e
                .span()
                .map(|span| 1 + text[..span.start].matches('\n').count());
            let message = e.message().trim().replace('\n', ", ");
            line.map_or_else(|| message.clone(), |line| format!("line {line}: {message}"))
        })?;
        if settings.overcommit.is_some_and(|ratio| !is_ratio(ratio)) {
            return Err("overcommit is not a number above zero".into());
        }
        match settings.workers {
            Some(0 | 1025..) => Err("workers is not between 1 and 1024".into()),
            _ => Ok(settings),
        }
    }

    /// These settings, completed with those of `file` that are not set here. A list that is given
    /// here replaces the file's.
    #[must_use]
    pub fn or(self, file: Self) -> Self {
        Self {
            pool: self.pool.or(file.pool),
            create: self.create.or(file.create),
            volume: if self.volume.is_empty() {
                file.volume
            } else {
                self.volume
            },
            listen: if self.listen.is_empty() {
                file.listen
            } else {
                self.listen
            },
            control: self.control.or(file.control),
            overcommit: self.overcommit.or(file.overcommit),
            workers: self.workers.or(file.workers),
            i_know_this_network_can_read_and_write_my_data: self
                .i_know_this_network_can_read_and_write_my_data
                || file.i_know_this_network_can_read_and_write_my_data,
        }
    }
}

/// A volume to make if it is missing: `NAME=SIZE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSize {
    /// Its name; the store judges it.
    pub name: String,
    /// Its size.
    pub size: Size,
}

impl FromStr for VolumeSize {
    type Err = String;

    /// The last `=` separates, since a name may have one.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, size) = text
            .rsplit_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| format!("{text:?} is not NAME=SIZE; write for example demo=10G"))?;
        let size = size.parse::<Size>().map_err(|e| e.to_string())?;
        Ok(Self {
            name: name.into(),
            size,
        })
    }
}

fn is_ratio(ratio: f64) -> bool {
    ratio.is_finite() && ratio > 0.0
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| is_ratio(*ratio));
    ratio.ok_or_else(|| format!("{text:?} is not a number above zero"))
}

impl<'de> Deserialize<'de> for VolumeSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

fn listen_addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Listen>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts
        .iter()
        .map(|text| text.parse().map_err(D::Error::custom))
        .collect()
}

/// A size in the file is a number of bytes or a text such as `"10G"`.
impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl de::Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"10G\" or a number of bytes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
        self.visit_str(&bytes.to_string())
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
        self.visit_str(&bytes.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let settings = Settings::parse(
            r#"
            pool = "/var/lib/basalt/pool"
            create = "10G"
            volume = ["demo=1G", "a=b=512"]
            listen = ["unix:/run/basalt/nbd.sock", "tcp:127.0.0.1:10809"]
            control = "/run/basalt/control.sock"
            overcommit = 1.5
            workers = 2
            i-know-this-network-can-read-and-write-my-data = true
            "#,
        )
        .unwrap();
        let volume = |name: &str, bytes| VolumeSize {
            name: name.into(),
            size: Size(bytes),
        };
        let expected = Settings {
            pool: Some("/var/lib/basalt/pool".into()),
            create: Some(Size(10 << 30)),
            volume: vec![volume("demo", 1 << 30), volume("a=b", 512)],
            listen: vec![
                Listen::Unix("/run/basalt/nbd.sock".into()),
                Listen::Tcp("127.0.0.1:10809".into()),
            ],
            control: Some("/run/basalt/control.sock".into()),
            overcommit: Some(1.5),
            workers: Some(2),
            i_know_this_network_can_read_and_write_my_data: true,
        };
        assert_eq!(settings, expected);
        assert_eq!(
            Settings::parse("create = 4096").unwrap().create,
            Some(Size(4096))
        );
        assert_eq!(Settings::parse("").unwrap(), Settings::default());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, said) in [
            (
                "pool = \"p\"\nvolumes = []",
                "line 2: unknown field `volumes`",
            ),
            ("create = \"10X\"", "unknown unit \"X\""),
            ("create = -1", "\"-1\" is negative"),
            ("volume = [\"demo\"]", "\"demo\" is not NAME=SIZE"),
            (
                "listen = [\"udp:1\"]",
                "neither unix:PATH nor tcp:HOST:PORT",
            ),
            ("overcommit = 0.0", "overcommit is not a number above zero"),
            ("workers = 0", "workers is not between 1 and 1024"),
            ("pool = ", "line 1: "),
        ] {
            let error = Settings::parse(text).unwrap_err();
            assert!(
                error.contains(said) && !error.contains('\n'),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let error = Settings::read(Path::new("/nonexistent/basalt.toml")).unwrap_err();
        assert!(
            error.starts_with("config /nonexistent/basalt.toml: "),
            "{error}"
        );
    }

    #[test]
    fn flags_win() {
        let file = Settings {
            pool: Some("file".into()),
            workers: Some(1),
            volume: vec!["a=1G".parse().unwrap(), "b=1G".parse().unwrap()],
            ..Settings::default()
        };
        let flags = Settings {
            workers: Some(2),
            volume: vec!["c=1G".parse().unwrap()],
            ..Settings::default()
        };
        let merged = flags.or(file);
        assert_eq!(merged.pool, Some("file".into()));
        assert_eq!(merged.workers, Some(2));
        assert_eq!(merged.volume, ["c=1G".parse().unwrap()]);
    }
}
