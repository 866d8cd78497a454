//! `cargo xtask run`: boots a system with its consoles on this terminal.
//!
//! Keys go to the machine as they are; Bulkhead itself knows Ctrl-A and what follows it. Only Ctrl-A x is ours: it ends the
//! emulator.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal};
use rustix::termios::{self, OptionalActions};

use bulkhead::config::Architecture;

use crate::boot::{self, Under};
use crate::console::{ESCAPE, Emulator, Ending, Event, Input, Screen};
use crate::machine::Settings;
use crate::undo::Undo;

/// Boots the system in `image`, on the machine that `dress` chooses for its architecture, and stays until the machine ends.
pub(crate) fn run(
    image: &str,
    dress: impl FnOnce(Architecture) -> anyhow::Result<Settings>,
) -> anyhow::Result<ExitCode> {
    let folder = boot::image_folder(image)?;
    let prepared = boot::prepare(&folder, Under::Bulkhead)?;
    let vms = prepared.vm_names();
    let mut emulator = prepared.start(&dress(prepared.architecture())?)?;
    if std::io::stdin().is_terminal() {
        eprintln!("Ctrl-A x ends the machine, Ctrl-A ? lists the other keys.");
    }
    let only = if let [vm] = vms.as_slice() { Some(vm.clone()) } else { None };
    let _terminal = raw_terminal();
    let ended_by_key = Arc::new(AtomicBool::new(false));
    if let (Some(input), Some(process)) = (emulator.take_input(), emulator.process()) {
        let ended_by_key = Arc::clone(&ended_by_key);
        std::thread::spawn(move || forward_keys(input, process, &ended_by_key));
    }
    let ending = show(&mut emulator, Screen::new(only), &mut std::io::stdout())?;
    if ended_by_key.load(Ordering::Acquire) {
        return Ok(ExitCode::SUCCESS);
    }
    if !ending.is_good() {
        eprintln!("the machine ended, but not well ({ending})");
    }
    Ok(ExitCode::from(ending.code()))
}

/// Shows what the machine prints until it ends.
fn show(emulator: &mut Emulator, mut screen: Screen, output: &mut impl Write) -> anyhow::Result<Ending> {
    loop {
        match emulator.wait(None)? {
            Event::Printed(pieces) => {
                for piece in &pieces {
                    output.write_all(&screen.show(piece))?;
                }
                output.flush()?;
            }
            Event::Ended(ending) => return Ok(ending),
            Event::Late => {}
        }
    }
}

/// Runs until the input or the machine ends. The end of the input leaves the machine running.
fn forward_keys(mut machine: Input, process: Pid, ended_by_key: &AtomicBool) {
    let mut keys = Keys::default();
    let mut buffer = [0; 256];
    while let Ok(count) = std::io::stdin().read(&mut buffer) {
        let forwarded = keys.take(&buffer[..count]);
        if machine.write_all(&forwarded.bytes).and_then(|()| machine.flush()).is_err() {
            return;
        }
        if forwarded.end {
            ended_by_key.store(true, Ordering::Release);
            // It may have ended by itself just now.
            let _ = rustix::process::kill_process(process, Signal::KILL);
            return;
        }
        if count == 0 {
            // Dropping the machine's input would be the end of its serial line for some emulators.
            std::mem::forget(machine);
            return;
        }
    }
}

/// Finds Ctrl-A x among the keys.
#[derive(Default)]
struct Keys {
    escaped: bool,
}

struct Forwarded {
    bytes: Vec<u8>,
    end: bool,
}

impl Keys {
    fn take(&mut self, keys: &[u8]) -> Forwarded {
        let mut bytes = Vec::with_capacity(keys.len() + 1);
        for &key in keys {
            match (self.escaped, key) {
                (true, b'x') => return Forwarded { bytes, end: true },
                (true, _) => {
                    bytes.extend([ESCAPE, key]);
                    self.escaped = false;
                }
                (false, ESCAPE) => self.escaped = true,
                (false, _) => bytes.push(key),
            }
        }
        Forwarded { bytes, end: false }
    }
}

/// The terminal without line editing, echo and signals, until what this gives is dropped.
fn raw_terminal() -> Option<Undo> {
    let stdin = rustix::stdio::stdin();
    let before = termios::tcgetattr(stdin).ok()?;
    let mut raw = before.clone();
    raw.make_raw();
    let undo = Undo::later(move || {
        // Nothing can be done about a terminal that is gone.
        let _ = termios::tcsetattr(stdin, OptionalActions::Now, &before);
    });
    termios::tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
    Some(undo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_that_ends_is_kept_back() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ls\n\x01n\x01\x01x").bytes, b"ls\n\x01n\x01\x01x");
        assert!(!keys.take(b"\x01").end);
        let forwarded = keys.take(b"xrest");
        assert!(forwarded.end && forwarded.bytes.is_empty());
    }

    #[test]
    fn a_machine_on_a_pipe_is_shown_and_its_status_returned() {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "echo early; exit 7"]);
        let mut emulator = Emulator::start(command, "log").unwrap();
        let mut shown = Vec::new();
        let ending = show(&mut emulator, Screen::new(None), &mut shown).unwrap();
        assert_eq!((ending.code(), shown.as_slice()), (7, &b"[log] early\n"[..]));
    }
}
