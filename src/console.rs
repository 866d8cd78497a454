//! Every VM's console, and the hypervisor's log, on one physical UART.
//!
//! Each source has a ring of its own, so a VM that floods its console waits for itself alone; sources take turns, after each
//! line, and in the middle of a line that does not end. On the wire every line
//! starts with a frame that names its source: 0x1e, an optional CR LF (where a line of another source was cut), `[name] `,
//! 0x1f. A person at a plain terminal reads tagged lines, because terminals ignore both control characters; a program takes
//! the frames out again. A guest's own 0x1e travels as the frame `.`, so no guest can speak for another.
//!
//! Input goes to the VM in focus. Ctrl-A is the escape: `n` next VM, `0`..`9` that VM, Ctrl-A itself, `?` help.

use crate::config::check::MAX_NAME;
use alloc::boxed::Box;
use alloc::vec::Vec;
use bulkhead_vdev as vdev;
use core::fmt::{self, Write as _};
use heapless::{Deque, String};
use spin::Mutex;

/// Starts a frame.
const FRAME: u8 = 0x1e;
/// Ends a frame.
const FRAME_END: u8 = 0x1f;
/// Ctrl-A.
const ESCAPE: u8 = 0x01;
/// Bytes of output that one source may have waiting.
const OUTPUT: usize = 2048;
/// Bytes of input that one VM may have waiting.
const INPUT: usize = 256;
/// Bytes that one call moves to the wire at most, so that the lock is never held for long.
const BURST: usize = 4096;
/// Bytes that a source says in a row at most, while others wait.
const SPEECH: usize = 256;
/// Looks at the lock that are surely more than a burst takes.
const PATIENCE: usize = 1 << 20;

/// The physical UART, as a back end drives it.
pub trait Uart: Send {
    /// Whether [`Uart::put`] takes a byte now.
    fn has_room(&mut self) -> bool;
    /// Sends one byte.
    fn put(&mut self, byte: u8);
    /// The next byte received.
    fn get(&mut self) -> Option<u8>;
    /// Whether the UART shall interrupt when it has room again.
    fn want_room(&mut self, wanted: bool);
}

/// The consoles. One value lives as long as the machine, shared by all CPUs.
pub struct Console(Mutex<Mux>);

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// No UART, no VM; the log is kept until there is one.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Mux::new()))
    }

    /// From now on `uart` carries everything.
    pub fn attach(&self, uart: Box<dyn Uart>) {
        let mut mux = self.0.lock();
        mux.log = Source::new("log");
        mux.uart = Some(uart);
        mux.pump();
    }

    /// Adds the console of the next VM.
    pub fn add(&self, name: &str) {
        self.0.lock().vms.push(Source::new(name));
    }

    /// The console of VM number `vm`, for its devices.
    #[must_use]
    pub fn of(&self, vm: usize) -> VmConsole<'_> {
        VmConsole { console: self, vm }
    }

    /// Writes one line to the log.
    pub fn log(&self, line: fmt::Arguments<'_>) {
        let mut mux = self.0.lock();
        // The ring drops what does not fit; nothing else can fail.
        let _ = writeln!(LogLine(&mut mux), "{line}");
        mux.pump();
    }

    /// Whether the consoles can be used, after a panic that may have come in the middle of them.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        // Whoever else has the lock gives it back after one burst at most; a CPU that panicked with it never does.
        (0..PATIENCE).any(|_| {
            core::hint::spin_loop();
            self.0.try_lock().is_some()
        })
    }

    /// Locks the consoles for ever, as a panic in the middle of them would.
    pub(crate) fn break_down(&self) {
        core::mem::forget(self.0.lock());
    }

    /// Moves what waits in both directions. Returns a VM that has input, or room again: the next one that was not told.
    pub fn service(&self) -> Option<usize> {
        let mut mux = self.0.lock();
        mux.receive();
        mux.pump();
        mux.take_news()
    }
}

/// One VM's end.
pub struct VmConsole<'a> {
    console: &'a Console,
    vm: usize,
}

impl vdev::Console for VmConsole<'_> {
    fn put(&mut self, byte: u8) -> bool {
        self.console.0.lock().put(self.vm, byte)
    }

    fn get(&mut self) -> Option<u8> {
        self.console.0.lock().vms.get_mut(self.vm)?.input.pop_front()
    }
}

struct LogLine<'a>(&'a mut Mux);

impl fmt::Write for LogLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.push(b'\r');
            }
            self.push(byte);
        }
        Ok(())
    }
}

impl LogLine<'_> {
    /// What finds no room even after a pump is lost: the log waits for nobody.
    fn push(&mut self, byte: u8) {
        if self.0.log.output.push_back(byte).is_err() {
            self.0.pump();
            let _ = self.0.log.output.push_back(byte);
        }
    }
}

struct Source {
    name: String<MAX_NAME>,
    output: Deque<u8, OUTPUT>,
    input: Deque<u8, INPUT>,
    /// Output was refused: the VM wants to know when there is room.
    blocked: bool,
    /// Input came that the VM has not been told of.
    news: bool,
}

impl Source {
    const EMPTY: Self =
        Self { name: String::new(), output: Deque::new(), input: Deque::new(), blocked: false, news: false };

    fn new(name: &str) -> Self {
        Self { name: name.chars().take(MAX_NAME).filter(char::is_ascii).collect(), ..Self::EMPTY }
    }
}

/// Who printed last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaker {
    Nobody,
    Log,
    Vm(usize),
}

struct Mux {
    uart: Option<Box<dyn Uart>>,
    log: Source,
    vms: Vec<Source>,
    speaker: Speaker,
    line_start: bool,
    /// Bytes of the speaker's since its frame, or since it was last seen to be the only one.
    said: usize,
    /// The rest of a frame that is on its way.
    frame: Deque<u8, 80>,
    focus: usize,
    escaped: bool,
    /// The VM that is told of its news first.
    told_next: usize,
}

impl Mux {
    const fn new() -> Self {
        Self {
            uart: None,
            log: Source::EMPTY,
            vms: Vec::new(),
            speaker: Speaker::Nobody,
            line_start: true,
            said: 0,
            frame: Deque::new(),
            focus: 0,
            escaped: false,
            told_next: 0,
        }
    }

    fn put(&mut self, vm: usize, byte: u8) -> bool {
        let Some(source) = self.vms.get_mut(vm) else { return true };
        // The common case, the middle of a line with nothing waiting, goes straight to the wire.
        let is_next = self.speaker == Speaker::Vm(vm) && source.output.is_empty() && self.frame.is_empty();
        if is_next
            && !self.line_start
            && byte >= b' '
            && self.said < SPEECH
            && let Some(uart) = &mut self.uart
            && uart.has_room()
        {
            uart.put(byte);
            self.said += 1;
            return true;
        }
        if source.output.push_back(byte).is_err() {
            source.blocked = true;
            return false;
        }
        self.pump();
        true
    }

    /// Moves bytes to the wire while it has room.
    fn pump(&mut self) {
        let Some(mut uart) = self.uart.take() else { return };
        let mut waits = false;
        for _ in 0..BURST {
            waits = !uart.has_room();
            if waits {
                break;
            }
            let Some(byte) = self.next_byte() else { break };
            uart.put(byte);
        }
        uart.want_room(waits);
        self.uart = Some(uart);
    }

    /// The next byte for the wire, frames included.
    fn next_byte(&mut self) -> Option<u8> {
        if let Some(byte) = self.frame.pop_front() {
            return Some(byte);
        }
        let speaker = self.next_speaker()?;
        if speaker != self.speaker || self.line_start {
            self.start_frame(speaker);
            return self.frame.pop_front();
        }
        let byte = self.source(speaker)?.output.pop_front()?;
        if byte == FRAME {
            self.queue(&[b'.', FRAME_END]);
        }
        // Whoever goes on after so much was alone, and may say as much again.
        self.said = self.said % SPEECH + 1;
        self.line_start = byte == b'\n';
        Some(byte)
    }

    /// Who has something to say: whoever is in the middle of a line that is not too long, else the next in turn.
    fn next_speaker(&self) -> Option<Speaker> {
        if !self.line_start && self.said < SPEECH && self.has_output(self.speaker) {
            return Some(self.speaker);
        }
        let after = match self.speaker {
            Speaker::Nobody => 0,
            Speaker::Log => 1,
            Speaker::Vm(vm) => vm + 2,
        };
        let count = self.vms.len() + 1;
        (0..count)
            .map(|step| match (after + step) % count {
                0 => Speaker::Log,
                place => Speaker::Vm(place - 1),
            })
            .find(|speaker| self.has_output(*speaker))
    }

    fn has_output(&self, speaker: Speaker) -> bool {
        let source = match speaker {
            Speaker::Vm(vm) => self.vms.get(vm),
            Speaker::Log => Some(&self.log),
            Speaker::Nobody => None,
        };
        source.is_some_and(|source| !source.output.is_empty())
    }

    fn start_frame(&mut self, speaker: Speaker) {
        let cut = !self.line_start;
        let Some(name) = self.source(speaker).map(|source| source.name.clone()) else { return };
        self.queue(&[FRAME]);
        if cut {
            self.queue(b"\r\n");
        }
        self.queue(b"[");
        self.queue(name.as_bytes());
        self.queue(b"] ");
        self.queue(&[FRAME_END]);
        self.speaker = speaker;
        self.line_start = false;
        self.said = 0;
    }

    fn queue(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // A frame fits: names are short, which the configuration's check sees to.
            let _ = self.frame.push_back(*byte);
        }
    }

    fn source(&mut self, speaker: Speaker) -> Option<&mut Source> {
        match speaker {
            Speaker::Vm(vm) => self.vms.get_mut(vm),
            Speaker::Log => Some(&mut self.log),
            Speaker::Nobody => None,
        }
    }

    /// Takes what was typed.
    fn receive(&mut self) {
        for _ in 0..INPUT {
            let Some(byte) = self.uart.as_mut().and_then(|uart| uart.get()) else { return };
            if core::mem::take(&mut self.escaped) {
                self.command(byte);
            } else if byte == ESCAPE {
                self.escaped = true;
            } else {
                self.typed(byte);
            }
        }
    }

    fn command(&mut self, byte: u8) {
        match byte {
            ESCAPE => self.typed(ESCAPE),
            b'n' => self.set_focus((self.focus + 1) % self.vms.len().max(1)),
            b'0'..=b'9' => self.set_focus(usize::from(byte - b'0')),
            b'?' => self.say(format_args!(
                "console: Ctrl-A n next VM, Ctrl-A 0..9 that VM, Ctrl-A Ctrl-A a literal Ctrl-A"
            )),
            _ => {}
        }
    }

    fn set_focus(&mut self, vm: usize) {
        let Some(name) = self.vms.get(vm).map(|source| source.name.clone()) else { return };
        self.focus = vm;
        self.say(format_args!("console: input goes to {name}"));
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        // As in `Console::log`.
        let _ = writeln!(LogLine(self), "{line}");
    }

    fn typed(&mut self, byte: u8) {
        if let Some(source) = self.vms.get_mut(self.focus) {
            // A VM that does not read loses what does not fit, as with any UART.
            let _ = source.input.push_back(byte);
            source.news = true;
        }
    }

    /// One VM's news at a time: whoever fails while it tells a VM must not lose another's.
    fn take_news(&mut self) -> Option<usize> {
        let count = self.vms.len();
        for vm in (self.told_next..count).chain(0..self.told_next) {
            let Some(source) = self.vms.get_mut(vm) else { continue };
            let room = source.blocked && source.output.len() <= OUTPUT / 2;
            if core::mem::take(&mut source.news) || room {
                source.blocked &= !room;
                self.told_next = vm + 1;
                return Some(vm);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use alloc::sync::Arc;
    use vdev::Console as _;

    #[derive(Default)]
    struct Line {
        sent: Vec<u8>,
        typed: Vec<u8>,
        room: usize,
    }

    struct FakeUart(Arc<Mutex<Line>>);

    impl Uart for FakeUart {
        fn has_room(&mut self) -> bool {
            self.0.lock().room > 0
        }

        fn put(&mut self, byte: u8) {
            let mut line = self.0.lock();
            line.room -= 1;
            line.sent.push(byte);
        }

        fn get(&mut self) -> Option<u8> {
            let mut line = self.0.lock();
            (!line.typed.is_empty()).then(|| line.typed.remove(0))
        }

        fn want_room(&mut self, _wanted: bool) {}
    }

    fn console(room: usize) -> (Console, Arc<Mutex<Line>>) {
        let line = Arc::new(Mutex::new(Line { room, ..Line::default() }));
        let console = Console::new();
        console.attach(Box::new(FakeUart(line.clone())));
        console.add("a");
        console.add("b");
        (console, line)
    }

    fn print(console: &Console, vm: usize, text: &str) {
        for byte in text.bytes() {
            assert!(console.of(vm).put(byte));
        }
    }

    fn sent(line: &Mutex<Line>) -> String {
        String::from_utf8(line.lock().sent.clone()).unwrap()
    }

    #[test]
    fn each_line_names_its_vm() {
        let (console, line) = console(1000);
        print(&console, 0, "one\r\ntwo");
        assert_eq!(sent(&line), "\x1e[a] \x1fone\r\n\x1e[a] \x1ftwo");
    }

    #[test]
    fn a_line_that_is_cut_is_ended_for_people_only() {
        let (console, line) = console(1000);
        print(&console, 0, "pro");
        print(&console, 1, "x\n");
        print(&console, 0, "mpt");
        assert_eq!(sent(&line), "\x1e[a] \x1fpro\x1e\r\n[b] \x1fx\n\x1e[a] \x1fmpt");
    }

    #[test]
    fn a_guest_cannot_forge_a_frame() {
        let (console, line) = console(1000);
        print(&console, 0, "a\x1e[b] \x1f");
        assert_eq!(sent(&line), "\x1e[a] \x1fa\x1e.\x1f[b] \x1f");
    }

    #[test]
    fn a_full_uart_blocks_only_who_floods() {
        let (console, line) = console(0);
        let accepted = (0..2 * OUTPUT).take_while(|_| console.of(0).put(b'x')).count();
        assert_eq!(accepted, OUTPUT);
        assert!(console.of(1).put(b'y'));
        line.lock().room = 2 * OUTPUT;
        assert_eq!(console.service(), Some(0), "told that there is room again");
        assert!(sent(&line).contains("[b] \x1fy"));
    }

    /// Lets the UART send one byte at a time while VM 0 has always more of a line that never ends.
    fn trickle(console: &Console, line: &Mutex<Line>, bytes: usize) {
        for _ in 0..bytes {
            while console.of(0).put(b'x') {}
            line.lock().room = 1;
            console.service();
        }
    }

    #[test]
    fn a_line_without_end_keeps_nobody_from_the_wire() {
        let (console, line) = console(0);
        print(&console, 1, "first\nsecond\n");
        console.log(format_args!("the log"));
        trickle(&console, &line, 3 * SPEECH + 200);
        for text in ["first", "second", "the log"] {
            assert!(sent(&line).contains(text), "{text}");
        }
    }

    #[test]
    fn one_alone_is_not_cut() {
        let (console, line) = console(0);
        trickle(&console, &line, 10 * SPEECH);
        print(&console, 1, "y");
        trickle(&console, &line, SPEECH + 40);
        assert_eq!(sent(&line).matches("[a]").count(), 2, "once before, once after the other");
    }

    #[test]
    fn the_log_takes_its_turn() {
        let (console, line) = console(0);
        (0..20).for_each(|number| console.log(format_args!("line {number}")));
        print(&console, 0, "one\n");
        line.lock().room = 100;
        console.service();
        assert!(sent(&line).contains("one"), "{:?}", sent(&line));
    }

    #[test]
    fn input_goes_to_the_vm_in_focus() {
        let (console, line) = console(1000);
        line.lock().typed = b"1\x01n2\x01\x01\x0103".to_vec();
        assert_eq!([(); 3].map(|()| console.service()), [Some(0), Some(1), None]);
        let read = |vm| core::iter::from_fn(|| console.of(vm).get()).collect::<Vec<u8>>();
        assert_eq!(read(0), b"13");
        assert_eq!(read(1), b"2\x01");
    }

    #[test]
    fn the_log_is_a_source_of_its_own() {
        let (console, line) = console(1000);
        let number = 7;
        console.log(format_args!("hello {number}"));
        assert_eq!(sent(&line), "\x1e[log] \x1fhello 7\r\n");
    }
}
