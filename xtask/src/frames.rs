//! Many consoles on one serial line: Bulkhead's framing, taken apart again.
//!
//! A frame is 0x1e, a text, 0x1f. The text `[NAME] ` selects the console whose bytes follow; `\r\n` may stand before it
//! when the switch came within a line, for people who read the raw line. The text `.` is one byte 0x1e of the selected
//! console itself. Everything before the first frame, and whatever only looks like a frame, belongs to the console
//! selected at that moment, which is `log` at first.

/// Starts a frame (ASCII record separator).
const START: u8 = 0x1e;
/// Ends a frame (ASCII unit separator).
const END: u8 = 0x1f;
/// No frame is longer; a start that is not followed by an end within so many bytes was noise.
const LONGEST: usize = 80;
/// The hypervisor's own console.
pub(crate) const LOG: &str = "log";

/// Bytes that one console printed in one go.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    /// The console.
    pub(crate) console: String,
    /// What it printed.
    pub(crate) bytes: Vec<u8>,
}

/// Takes the line apart, however it is cut into chunks.
pub(crate) struct Demux {
    selected: String,
    /// A frame under way, its start left out.
    frame: Option<Vec<u8>>,
    pieces: Vec<Piece>,
}

impl Demux {
    /// A line on which `console` speaks until a frame says otherwise.
    pub(crate) fn new(console: &str) -> Self {
        Self { selected: console.to_owned(), frame: None, pieces: Vec::new() }
    }

    /// Takes bytes of the line and returns what is complete so far.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        for &byte in bytes {
            self.take(byte);
        }
        std::mem::take(&mut self.pieces)
    }

    /// The line ended: a frame under way was none.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        self.give_up_frame();
        std::mem::take(&mut self.pieces)
    }

    fn take(&mut self, byte: u8) {
        match (&mut self.frame, byte) {
            (None, START) => self.frame = Some(Vec::new()),
            (None, _) => self.put(&[byte]),
            (Some(_), START) => {
                self.give_up_frame();
                self.frame = Some(Vec::new());
            }
            (Some(_), END) => self.end_frame(),
            (Some(text), _) => {
                text.push(byte);
                if text.len() > LONGEST {
                    self.give_up_frame();
                }
            }
        }
    }

    fn end_frame(&mut self) {
        let Some(text) = self.frame.take() else { return };
        if text == b"." {
            self.put(&[START]);
        } else if let Some(name) = selection(&text) {
            name.clone_into(&mut self.selected);
        } else {
            self.frame = Some(text);
            self.give_up_frame();
            self.put(&[END]);
        }
    }

    fn give_up_frame(&mut self) {
        if let Some(text) = self.frame.take() {
            self.put(&[START]);
            self.put(&text);
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        match self.pieces.last_mut() {
            Some(piece) if piece.console == self.selected => piece.bytes.extend_from_slice(bytes),
            _ => self.pieces.push(Piece { console: self.selected.clone(), bytes: bytes.to_vec() }),
        }
    }
}

fn selection(text: &[u8]) -> Option<&str> {
    let text = text.strip_prefix(b"\r\n").unwrap_or(text);
    let name = text.strip_prefix(b"[")?.strip_suffix(b"] ")?;
    let is_name =
        !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte));
    std::str::from_utf8(name).ok().filter(|_| is_name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The hypervisor's side, as its protocol is written down.
    #[derive(Default)]
    struct Mux {
        line: Vec<u8>,
        selected: Option<String>,
        mid_line: bool,
    }

    impl Mux {
        fn put(&mut self, console: &str, byte: u8) {
            let is_selected = self.selected.as_deref() == Some(console);
            if !is_selected || !self.mid_line {
                self.line.push(START);
                if self.mid_line {
                    self.line.extend_from_slice(b"\r\n");
                }
                self.line.extend_from_slice(format!("[{console}] ").as_bytes());
                self.line.push(END);
                self.selected = Some(console.to_owned());
            }
            match byte {
                START => self.line.extend_from_slice(&[START, b'.', END]),
                _ => self.line.push(byte),
            }
            self.mid_line = byte != b'\n';
        }
    }

    fn of(pieces: &[Piece], console: &str) -> Vec<u8> {
        pieces.iter().filter(|piece| piece.console == console).flat_map(|piece| piece.bytes.clone()).collect()
    }

    #[test]
    fn bytes_before_the_first_frame_are_the_log() {
        let pieces = Demux::new(LOG).feed(b"early\n\x1e[linux] \x1fhello");
        assert_eq!(of(&pieces, "log"), b"early\n");
        assert_eq!(of(&pieces, "linux"), b"hello");
    }

    #[test]
    fn what_only_looks_like_a_frame_stays_as_it_is() {
        for noise in [
            &b"\x1eno frame\x1f"[..],
            b"\x1e\x1f",
            b"\x1f",
            b"\x1e[] \x1f",
            b"\x1e[a b] \x1f",
            b"\x1e[x]\x1f",
        ] {
            assert_eq!(of(&Demux::new(LOG).feed(noise), "log"), noise);
        }
    }

    #[test]
    fn a_frame_without_an_end_comes_out_at_the_end() {
        let mut demux = Demux::new(LOG);
        assert!(demux.feed(b"\x1e[lin").is_empty());
        assert_eq!(of(&demux.finish(), "log"), b"\x1e[lin");
        let mut long = vec![START];
        long.extend([b'a'; LONGEST + 1]);
        assert_eq!(of(&Demux::new(LOG).feed(&long), "log"), long);
    }

    proptest! {
        #[test]
        fn every_console_gets_its_own_bytes_back(
            bytes in proptest::collection::vec((0_usize..3, prop_oneof![any::<u8>(), Just(START), Just(END), Just(b'\n')]), 0..400),
            cut in 1_usize..40,
        ) {
            let names = ["log", "linux", "rt-1"];
            let mut mux = Mux::default();
            for &(console, byte) in &bytes {
                mux.put(names[console], byte);
            }
            let mut demux = Demux::new(LOG);
            let mut pieces: Vec<Piece> = mux.line.chunks(cut).flat_map(|chunk| demux.feed(chunk)).collect();
            pieces.extend(demux.finish());
            for (index, name) in names.iter().enumerate() {
                let sent: Vec<u8> = bytes.iter().filter(|pair| pair.0 == index).map(|pair| pair.1).collect();
                prop_assert_eq!(of(&pieces, name), sent);
            }
        }

        #[test]
        fn no_line_is_lost_and_none_is_made_up(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut demux = Demux::new(LOG);
            let mut total = demux.feed(&bytes);
            total.extend(demux.finish());
            let length: usize = total.iter().map(|piece| piece.bytes.len()).sum();
            prop_assert!(length <= bytes.len());
        }
    }
}
