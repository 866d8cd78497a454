//! The running emulator: its serial line taken apart into consoles, and one way to type into them.

use std::fmt;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Instant;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::command;
use crate::frames::{Demux, Piece};

/// The key before a command to Bulkhead's console: Ctrl-A.
pub(crate) const ESCAPE: u8 = 0x01;

/// Where keys go.
pub(crate) type Input = Box<dyn Write + Send>;

/// An emulator under way; it ends when this is dropped.
pub(crate) struct Emulator {
    child: Child,
    input: Option<Input>,
    output: Receiver<Vec<u8>>,
    demux: Demux,
    /// Says why it ended, where its status does not.
    explain: Option<Explain>,
}

/// Asked once the emulator has ended.
pub(crate) type Explain = Box<dyn Fn() -> Ending + Send>;

/// How an emulator ended: for a user's eyes, and with the status that `run` passes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ending {
    code: u8,
    text: String,
}

impl Ending {
    /// The machine powered itself off.
    pub(crate) fn good(text: impl Into<String>) -> Self {
        Self { code: 0, text: text.into() }
    }

    /// Anything else.
    pub(crate) fn bad(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    /// Whether the machine powered itself off.
    pub(crate) fn is_good(&self) -> bool {
        self.code == 0
    }

    /// For this tool's own exit.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}

impl From<ExitStatus> for Ending {
    fn from(status: ExitStatus) -> Self {
        let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        Self { code, text: status.to_string() }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// What came of waiting.
pub(crate) enum Event {
    /// Some consoles printed.
    Printed(Vec<Piece>),
    /// The emulator ended by itself.
    Ended(Ending),
    /// Nothing happened in time.
    Late,
}

impl Emulator {
    /// Starts an emulator whose serial line is its standard input and output; bytes before any frame belong to `first`.
    pub(crate) fn start(mut command: Command, first: &str) -> anyhow::Result<Self> {
        // What the emulator itself complains about is shown as one more text on the line.
        let (reader, writer) = std::io::pipe()?;
        command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().map_err(|error| command::cannot_start(&command, &error))?;
        // The command holds our copies of the pipe's other end: while they are open the line never ends.
        drop(command);
        let input = child.stdin.take().map(|input| Box::new(input) as Input);
        Ok(Self { child, input, output: listen(reader), demux: Demux::new(first), explain: None })
    }

    /// Starts an emulator whose serial line calls at `listener`; `explain` says why it ended.
    pub(crate) fn start_on_socket(
        mut command: Command,
        listener: &TcpListener,
        first: &str,
        explain: Explain,
    ) -> anyhow::Result<Self> {
        let mut child = command.spawn().map_err(|error| command::cannot_start(&command, &error))?;
        let line = match call(listener, &mut child) {
            Ok(Some(line)) => line,
            Ok(None) => bail!("the emulator ended at once ({})", explain()),
            Err(error) => {
                // Nobody else would end it.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error).context("the emulator's serial line cannot be heard");
            }
        };
        // Each key goes by itself.
        line.set_nodelay(true)?;
        let input: Input = Box::new(line.try_clone()?);
        Ok(Self {
            child,
            input: Some(input),
            output: listen(line),
            demux: Demux::new(first),
            explain: Some(explain),
        })
    }

    /// The emulator's serial line, for a thread that forwards keys.
    pub(crate) fn take_input(&mut self) -> Option<Input> {
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
                let status = self.child.wait()?;
                let ending = self.explain.as_ref().map_or_else(|| status.into(), |explain| explain());
                return Ok(Event::Ended(ending));
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

/// Passes on what is printed, from a thread of its own, until the line ends.
fn listen(mut line: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, output) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = line.read(&mut buffer) {
            if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    output
}

/// Waits for the emulator's call; `None` if it ended before.
fn call(listener: &TcpListener, child: &mut Child) -> anyhow::Result<Option<TcpStream>> {
    const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    loop {
        let mut waiting = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut waiting, Some(&LOOK_AGAIN))? > 0 {
            return Ok(Some(listener.accept()?.0));
        }
        if child.try_wait()?.is_some() {
            return Ok(None);
        }
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
        assert_eq!(status.code(), 3);
    }

    #[test]
    fn an_emulator_that_never_calls_says_why() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let explain: Explain = Box::new(|| Ending::bad("no disk"));
        let outcome = Emulator::start_on_socket(Command::new("true"), &listener, "log", explain);
        let error = outcome.err().unwrap().to_string();
        assert_eq!(error, "the emulator ended at once (no disk)");
    }

    #[test]
    fn only_ten_consoles_have_a_key() {
        assert_eq!(focus_keys(9), Some([ESCAPE, b'9']));
        assert_eq!(focus_keys(10), None);
    }
}
