//! Every command against every rule.
use super::*;
use crate::limits::COMMAND_BYTES_MAX;

const SIZE: u64 = 1 << 40;
const RULES: Rules = Rules {
    size: SIZE,
    read_only: false,
    structured: true,
    contexts: true,
};
const SNAPSHOT: Rules = Rules {
    read_only: true,
    ..RULES
};

fn raw(kind: u16, flags: u16, offset: u64, length: u32) -> RawRequest {
    RawRequest {
        flags,
        kind,
        cookie: 7,
        offset,
        length,
    }
}

fn check(kind: u16, flags: u16, offset: u64, length: u32) -> Result<Command, Errno> {
    validate(&raw(kind, flags, offset, length), RULES)
}

#[test]
fn each_command_becomes_what_it_says() {
    use command_flag::{DF, FUA, NO_HOLE, REQ_ONE};
    let (offset, length) = (512, 3);
    let read = |whole| Command::Read {
        offset,
        length,
        whole,
    };
    let write = |fua| Command::Write {
        offset,
        length,
        fua,
    };
    let trim = |fua| Command::Trim {
        offset,
        length,
        fua,
    };
    let zero = |allocate, fua| Command::Zero {
        offset,
        length,
        allocate,
        fua,
    };
    let status = |one| Command::Status {
        offset,
        length,
        one,
    };
    let table = [
        (command::READ, 0, read(false)),
        (command::READ, DF, read(true)),
        (command::WRITE, 0, write(false)),
        (command::WRITE, FUA, write(true)),
        (command::TRIM, 0, trim(false)),
        (command::TRIM, FUA, trim(true)),
        (command::CACHE, 0, Command::Nothing),
        (command::WRITE_ZEROES, NO_HOLE | FUA, zero(true, true)),
        (command::WRITE_ZEROES, 0, zero(false, false)),
        (command::BLOCK_STATUS, 0, status(false)),
        (command::BLOCK_STATUS, REQ_ONE, status(true)),
    ];
    for (kind, flags, expected) in table {
        assert_eq!(check(kind, flags, offset, length), Ok(expected));
    }
    assert_eq!(check(command::FLUSH, 0, 0, 0), Ok(Command::Flush));
    assert_eq!(check(command::DISC, 0xffff, 1, 1), Ok(Command::Disconnect));
}

#[test]
fn fua_is_accepted_on_any_command() {
    for kind in [0, 1, 2, 4, 5, 6, 7] {
        assert!(
            check(kind, command_flag::FUA, 4096, 4096).is_ok(),
            "command {kind}"
        );
    }
    assert!(check(command::FLUSH, command_flag::FUA, 0, 0).is_ok());
}

#[test]
fn a_flag_that_is_not_documented_for_the_command_is_einval() {
    use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
    let own = |kind| match kind {
        command::READ => DF,
        command::WRITE_ZEROES => NO_HOLE | FAST_ZERO,
        command::BLOCK_STATUS => REQ_ONE,
        _ => 0,
    };
    for kind in [0, 1, 3, 4, 5, 6, 7] {
        for bit in 0..16 {
            let flag = 1 << bit;
            let verdict = check(kind, flag, 0, if kind == command::FLUSH { 0 } else { 8192 });
            let refused = verdict == Err(Errno::Inval);
            assert_eq!(
                refused,
                flag & (own(kind) | FUA) == 0,
                "command {kind}, bit {bit}"
            );
        }
    }
}

#[test]
fn df_needs_structured_replies() {
    let simple = Rules {
        structured: false,
        ..RULES
    };
    let read = raw(command::READ, command_flag::DF, 0, 4096);
    assert_eq!(validate(&read, simple), Err(Errno::Inval));
}

#[test]
fn unknown_commands_are_einval() {
    for kind in (8..0x200).chain([0xffff]) {
        assert_eq!(check(kind, 0, 0, 0), Err(Errno::Inval), "command {kind}");
    }
}

#[test]
fn a_range_past_the_end_is_enospc_for_what_would_grow_and_einval_for_the_rest() {
    let ranges = [
        (SIZE, 1),
        (SIZE - 1, 2),
        (SIZE + 1, 0),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
    ];
    for (offset, length) in ranges {
        for kind in [command::WRITE, command::WRITE_ZEROES] {
            assert_eq!(
                check(kind, 0, offset, length),
                Err(Errno::NoSpace),
                "{offset}+{length}"
            );
        }
        for kind in [
            command::READ,
            command::TRIM,
            command::CACHE,
            command::BLOCK_STATUS,
        ] {
            assert_eq!(
                check(kind, 0, offset, length),
                Err(Errno::Inval),
                "{offset}+{length}"
            );
        }
    }
    for kind in [
        command::READ,
        command::WRITE,
        command::TRIM,
        command::WRITE_ZEROES,
    ] {
        assert!(check(kind, 0, SIZE - 1, 1).is_ok());
    }
}

#[test]
fn changes_to_a_snapshot_are_eperm_even_past_its_end() {
    for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        for offset in [0, SIZE, u64::MAX] {
            let verdict = validate(&raw(kind, 0, offset, 4096), SNAPSHOT);
            assert_eq!(verdict, Err(Errno::Perm));
        }
    }
    for kind in [command::READ, command::CACHE, command::BLOCK_STATUS] {
        assert!(validate(&raw(kind, 0, 0, 4096), SNAPSHOT).is_ok());
    }
    assert_eq!(
        validate(&raw(command::FLUSH, 0, 0, 0), SNAPSHOT),
        Ok(Command::Flush)
    );
}

#[test]
fn no_length_does_nothing_but_block_status_refuses_it() {
    for kind in [
        command::WRITE,
        command::TRIM,
        command::CACHE,
        command::WRITE_ZEROES,
    ] {
        assert_eq!(check(kind, 0, SIZE, 0), Ok(Command::Nothing));
    }
    let read = Command::Read {
        offset: SIZE,
        length: 0,
        whole: false,
    };
    assert_eq!(check(command::READ, 0, SIZE, 0), Ok(read));
    assert_eq!(check(command::BLOCK_STATUS, 0, 0, 0), Err(Errno::Inval));
}

#[test]
fn block_status_takes_any_length_and_alignment_that_fits() {
    let status = |offset, length| {
        Ok(Command::Status {
            offset,
            length,
            one: false,
        })
    };
    for (offset, length) in [(0, u32::MAX), (1, 1), (511, 513), (SIZE - 1, 1)] {
        assert_eq!(
            check(command::BLOCK_STATUS, 0, offset, length),
            status(offset, length)
        );
    }
    let without = Rules {
        contexts: false,
        ..RULES
    };
    let verdict = validate(&raw(command::BLOCK_STATUS, 0, 0, 1), without);
    assert_eq!(verdict, Err(Errno::Inval));
}

#[test]
fn a_read_that_is_too_long_is_refused() {
    let max = PAYLOAD_BYTES_MAX;
    assert!(check(command::READ, 0, 0, max).is_ok());
    assert_eq!(check(command::READ, 0, 0, max + 1), Err(Errno::Inval));
    let whole = check(command::READ, command_flag::DF, 0, max + 1);
    assert_eq!(whole, Err(Errno::Overflow));
}

#[test]
fn only_a_write_has_a_payload_and_it_is_bounded() {
    assert!(payload_fits(&raw(command::WRITE, 0, 0, PAYLOAD_BYTES_MAX)));
    assert!(!payload_fits(&raw(
        command::WRITE,
        0,
        0,
        PAYLOAD_BYTES_MAX + 1
    )));
    assert!(payload_fits(&raw(command::WRITE_ZEROES, 0, 0, u32::MAX)));
}

#[test]
fn fast_zero_is_refused_when_it_would_write() {
    use command_flag::{FAST_ZERO, NO_HOLE};
    let zero = |flags, offset, length| check(command::WRITE_ZEROES, flags, offset, length);
    for (offset, length) in [(0, 4096), (1, 8191), (4095, 4097), (100, u32::MAX)] {
        assert!(zero(FAST_ZERO, offset, length).is_ok(), "{offset}+{length}");
        let keeping = zero(FAST_ZERO | NO_HOLE, offset, length);
        assert_eq!(keeping, Err(Errno::NotSupported));
    }
    for (offset, length) in [(0, 4095), (1, 8190), (4095, 4096)] {
        assert_eq!(zero(FAST_ZERO, offset, length), Err(Errno::NotSupported));
        assert!(zero(0, offset, length).is_ok(), "never without the flag");
    }
    assert_eq!(zero(FAST_ZERO | NO_HOLE, 0, 0), Ok(Command::Nothing));
    assert_eq!(zero(FAST_ZERO, SIZE, 4096), Err(Errno::NoSpace));
}

#[test]
fn no_command_is_charged_more_than_the_stated_maximum() {
    let longest = [
        check(command::READ, 0, 1, PAYLOAD_BYTES_MAX),
        check(command::WRITE, 0, 1, PAYLOAD_BYTES_MAX),
        check(command::BLOCK_STATUS, 0, 0, u32::MAX),
    ];
    for command in longest {
        let memory = command.map(|c| c.memory(crate::limits::CONTEXTS_MAX));
        assert!(memory.is_ok_and(|bytes| bytes <= COMMAND_BYTES_MAX));
    }
}
