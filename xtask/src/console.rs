//! The running emulator: its serial line taken apart into consoles, and one way to type into them.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Instant;

use anyhow::bail;

use crate::command;
use crate::frames::{Demux, Piece};

/// The key before a command to Bulkhead's console: Ctrl-A.
pub(crate) const ESCAPE: u8 = 0x01;

/// An emulator under way; it ends when this is dropped.
pub(crate) struct Emulator {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    demux: Demux,
}

/// What came of waiting.
pub(crate) enum Event {
    /// Some consoles printed.
    Printed(Vec<Piece>),
    /// The emulator ended by itself.
    Ended(ExitStatus),
    /// Nothing happened in time.
    Late,
}

impl Emulator {
    /// Starts the emulator; bytes before any frame belong to `first`.
    pub(crate) fn start(mut command: Command, first: &str) -> anyhow::Result<Self> {
        // What the emulator itself complains about is shown as one more text on the line.
        let (mut reader, writer) = std::io::pipe()?;
        command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().map_err(|error| command::cannot_start(&command, &error))?;
        // The command holds our copies of the pipe's other end: while they are open the line never ends.
        drop(command);
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = reader.read(&mut buffer) {
                if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let input = child.stdin.take();
        Ok(Self { child, input, output, demux: Demux::new(first) })
    }

    /// The emulator's standard input, for a thread that forwards keys.
    pub(crate) fn take_input(&mut self) -> Option<ChildStdin> {
        self.input.take()
    }

    /// Types bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let Some(input) = &mut self.input else { bail!("the emulator takes no input") };
        if input.write_all(bytes).and_then(|()| input.flush()).is_err() {
            bail!("the machine ended before it could be typed to");
        }
        Ok(())
    }

    /// Waits until something is printed, the emulator ends, or the time is up.
    pub(crate) fn wait(&mut self, until: Option<Instant>) -> anyhow::Result<Event> {
        loop {
            let received = match until {
                Some(until) => self.output.recv_timeout(until.saturating_duration_since(Instant::now())),
                None => self.output.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let (pieces, has_ended) = match received {
                Ok(mut bytes) => {
                    bytes.extend(self.output.try_iter().flatten());
                    (self.demux.feed(&bytes), false)
                }
                Err(RecvTimeoutError::Timeout) => return Ok(Event::Late),
                Err(RecvTimeoutError::Disconnected) => (self.demux.finish(), true),
            };
            if !pieces.is_empty() {
                return Ok(Event::Printed(pieces));
            }
            if has_ended {
                return Ok(Event::Ended(self.child.wait()?));
            }
        }
    }

    /// Ends the emulator.
    pub(crate) fn stop(&mut self) {
        // It may have ended by itself just now; there is nothing else that could go wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its process, to be ended from elsewhere.
    pub(crate) fn process(&self) -> Option<rustix::process::Pid> {
        rustix::process::Pid::from_raw(i32::try_from(self.child.id()).ok()?)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The keys that bring the VM console of this index (in the order of system.toml) into focus.
pub(crate) fn focus_keys(index: usize) -> Option<[u8; 2]> {
    let digit = u8::try_from(index).ok().filter(|&index| index < 10)?;
    Some([ESCAPE, b'0' + digit])
}

/// Several consoles on one screen: each line tagged with its console's name, unless it is the only one.
pub(crate) struct Screen {
    /// The console that needs no tag.
    plain: Option<String>,
    /// Who printed last, and whether that line is still open.
    last: Option<String>,
    mid_line: bool,
}

impl Screen {
    /// A screen on which `plain` is the main console.
    pub(crate) fn new(plain: Option<String>) -> Self {
        Self { plain, last: None, mid_line: false }
    }

    /// What the terminal gets for a piece.
    pub(crate) fn show(&mut self, piece: &Piece) -> Vec<u8> {
        let mut shown = Vec::with_capacity(piece.bytes.len() + 16);
        let is_plain = self.plain.as_ref() == Some(&piece.console);
        if self.last.as_ref() != Some(&piece.console) && self.mid_line {
            shown.extend_from_slice(b"\r\n");
            self.mid_line = false;
        }
        self.last = Some(piece.console.clone());
        for &byte in &piece.bytes {
            if !self.mid_line && !is_plain {
                shown.extend_from_slice(format!("[{}] ", piece.console).as_bytes());
            }
            shown.push(byte);
            self.mid_line = byte != b'\n';
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(console: &str, text: &str) -> Piece {
        Piece { console: console.to_owned(), bytes: text.as_bytes().to_vec() }
    }

    fn show(plain: Option<&str>, pieces: &[(&str, &str)]) -> String {
        let mut screen = Screen::new(plain.map(str::to_owned));
        let bytes: Vec<u8> = pieces.iter().flat_map(|(name, text)| screen.show(&piece(name, text))).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn one_vm_is_shown_plainly_and_the_log_is_tagged() {
        let shown = show(
            Some("linux"),
            &[("log", "up\r\n"), ("linux", "~ # "), ("log", "a\r\nb\r\n"), ("linux", "x")],
        );
        assert_eq!(shown, "[log] up\r\n~ # \r\n[log] a\r\n[log] b\r\nx");
    }

    #[test]
    fn several_vms_are_all_tagged() {
        assert_eq!(show(None, &[("a", "1\n2"), ("b", "3"), ("b", "4\n")]), "[a] 1\n[a] 2\r\n[b] 34\n");
    }

    #[test]
    fn a_program_is_heard_and_its_status_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "printf 'a\\036[vm] \\037b'; read x; printf \"$x\"; exit 3"]);
        let mut emulator = Emulator::start(command, "log").unwrap();
        emulator.send(b"typed\n").unwrap();
        let mut heard = Vec::new();
        let status = loop {
            match emulator.wait(None).unwrap() {
                Event::Printed(pieces) => heard.extend(pieces),
                Event::Ended(status) => break status,
                Event::Late => unreachable!("there is no limit"),
            }
        };
        let of = |name: &str| -> Vec<u8> {
            heard.iter().filter(|piece| piece.console == name).flat_map(|piece| piece.bytes.clone()).collect()
        };
        assert_eq!((of("log"), of("vm")), (b"a".to_vec(), b"btyped".to_vec()));
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn only_ten_consoles_have_a_key() {
        assert_eq!(focus_keys(9), Some([ESCAPE, b'9']));
        assert_eq!(focus_keys(10), None);
    }
}
