//! What every console has printed, and how far it has been matched. Pure.

use std::collections::BTreeMap;

use regex::bytes::Regex;

use crate::command;
use crate::frames::Piece;

/// Lines of each console that a failure shows.
const SHOWN_LINES: usize = 40;

/// Every console's text so far.
#[derive(Default)]
pub(crate) struct Transcript {
    consoles: BTreeMap<String, Console>,
}

#[derive(Default)]
struct Console {
    text: Vec<u8>,
    /// Everything before has been matched.
    matched: usize,
    rejected: Vec<Rejected>,
}

struct Rejected {
    pattern: Regex,
    from: usize,
}

/// Something appeared that must not.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Appeared {
    pub(crate) console: String,
    pub(crate) pattern: String,
    /// The line in which it begins.
    pub(crate) line: String,
}

impl Transcript {
    /// Adds what was printed.
    pub(crate) fn add(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            self.consoles.entry(piece.console).or_default().text.extend_from_slice(&piece.bytes);
        }
    }

    /// Whether `pattern` occurs after what matched last; if so, everything up to its end is matched now. The shortest
    /// match counts, so that the outcome does not depend on how much has arrived by now.
    pub(crate) fn expect(&mut self, console: &str, pattern: &Regex) -> bool {
        let Some(console) = self.consoles.get_mut(console) else { return false };
        let end = pattern.shortest_match_at(&console.text, console.matched);
        console.matched = end.unwrap_or(console.matched);
        end.is_some()
    }

    /// From what matched last on, `pattern` must not occur.
    pub(crate) fn reject(&mut self, console: &str, pattern: Regex) {
        let console = self.consoles.entry(console.to_owned()).or_default();
        let from = console.matched;
        console.rejected.push(Rejected { pattern, from });
    }

    /// The first thing that appeared although it was rejected.
    pub(crate) fn appeared(&self) -> Option<Appeared> {
        self.consoles.iter().find_map(|(name, console)| {
            console.rejected.iter().find_map(|rejected| {
                let found = rejected.pattern.find_at(&console.text, rejected.from)?;
                Some(Appeared {
                    console: name.clone(),
                    pattern: rejected.pattern.as_str().to_owned(),
                    line: line_at(&console.text, found.start()),
                })
            })
        })
    }

    /// A console's whole text.
    pub(crate) fn text(&self, console: &str) -> String {
        let text = self.consoles.get(console).map(|console| console.text.as_slice()).unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// Each console with its raw text.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.consoles.iter().map(|(name, console)| (name.as_str(), console.text.as_slice()))
    }

    /// The last lines of every console, for a report.
    pub(crate) fn tail(&self) -> String {
        let consoles = self.consoles.keys().map(|name| {
            let text = self.text(name).replace('\r', "");
            let lines = command::last_lines(&text, SHOWN_LINES);
            let lines: String = lines.lines().map(|line| format!("  | {line}\n")).collect();
            format!("  console \"{name}\":\n{lines}")
        });
        consoles.collect()
    }
}

fn line_at(text: &[u8], at: usize) -> String {
    let start = text[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let end = text[at..].iter().position(|&byte| byte == b'\n').map_or(text.len(), |length| at + length);
    String::from_utf8_lossy(&text[start..end.max(start)]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::file::regex;

    fn add(transcript: &mut Transcript, console: &str, text: &str) {
        transcript.add(vec![Piece { console: console.to_owned(), bytes: text.as_bytes().to_vec() }]);
    }

    #[test]
    fn a_match_is_used_up() {
        let mut transcript = Transcript::default();
        let pattern = regex("~ # ").unwrap();
        assert!(!transcript.expect("vm", &pattern));
        add(&mut transcript, "vm", "~ # ls\r\n");
        assert!(transcript.expect("vm", &pattern));
        assert!(!transcript.expect("vm", &pattern));
        add(&mut transcript, "vm", "~ # ");
        assert!(transcript.expect("vm", &pattern));
    }

    #[test]
    fn the_shortest_match_leaves_the_rest_for_the_next_step() {
        let mut transcript = Transcript::default();
        add(&mut transcript, "vm", "a1 a2 a3\n");
        assert!(transcript.expect("vm", &regex("a.*[0-9]").unwrap()));
        assert!(transcript.expect("vm", &regex("a2").unwrap()));
    }

    #[test]
    fn anchors_mean_lines_whatever_ends_them() {
        let mut transcript = Transcript::default();
        add(&mut transcript, "vm", "is 4\r\n4\r\nrest");
        assert!(transcript.expect("vm", &regex("^4$").unwrap()));
        assert!(transcript.expect("vm", &regex("^rest").unwrap()));
    }

    #[test]
    fn consoles_do_not_mix() {
        let mut transcript = Transcript::default();
        add(&mut transcript, "a", "pass");
        assert!(!transcript.expect("b", &regex("pass").unwrap()));
        assert!(transcript.expect("a", &regex("pass").unwrap()));
    }

    #[test]
    fn a_rejection_holds_from_its_step_on() {
        let mut transcript = Transcript::default();
        add(&mut transcript, "vm", "Oops, early\nready\n");
        assert!(transcript.expect("vm", &regex("ready").unwrap()));
        transcript.reject("vm", regex("Oops|stall").unwrap());
        assert_eq!(transcript.appeared(), None);
        add(&mut transcript, "other", "Oops\n");
        assert_eq!(transcript.appeared(), None);
        add(&mut transcript, "vm", "fine\nrcu: Oops again\r\nmore");
        let appeared = transcript.appeared().unwrap();
        assert_eq!((appeared.console.as_str(), appeared.line.as_str()), ("vm", "rcu: Oops again"));
    }

    #[test]
    fn a_report_shows_the_last_lines_of_each_console() {
        let mut transcript = Transcript::default();
        for number in 0..100 {
            add(&mut transcript, "vm", &format!("line {number}\r\n"));
        }
        let tail = transcript.tail();
        assert!(
            tail.contains("line 99") && tail.contains("line 60\n") && !tail.contains("line 59"),
            "{tail}"
        );
    }
}
