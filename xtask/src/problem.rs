//! Mistakes in a configuration file, shown where they are: as an excerpt with an arrow on a terminal, as one line each
//! elsewhere. Nothing is printed here; [`Reported`] is an error like any other.

use std::fmt;
use std::io::IsTerminal;
use std::ops::Range;
use std::path::Path;

use ariadne::{Color, Config, IndexType, Label, Report, ReportKind, Source};

/// One mistake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mistake {
    /// Where, in bytes of the file.
    pub(crate) span: Range<usize>,
    /// What is wrong: a clause without a full stop.
    pub(crate) what: String,
    /// What to do about it, unless `what` says so already.
    pub(crate) mend: Option<String>,
}

impl Mistake {
    /// A mistake with the way to mend it.
    pub(crate) fn new(span: Range<usize>, what: impl fmt::Display, mend: impl fmt::Display) -> Self {
        Self { span, what: what.to_string(), mend: Some(mend.to_string()) }
    }

    /// A mistake that is told in one line: what, and behind a semicolon how to mend it.
    pub(crate) fn told(span: Range<usize>, line: impl fmt::Display) -> Self {
        let line = line.to_string();
        match line.split_once("; ") {
            Some((what, mend)) => Self::new(span, what, mend),
            None => Self { span, what: line, mend: None },
        }
    }
}

/// Mistakes in a file, as text for the user.
#[derive(Debug)]
pub(crate) struct Reported(String);

impl Reported {
    /// What is wrong with `file`, whose content is `text`.
    pub(crate) fn new(file: &Path, text: &str, mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by_key(|mistake| mistake.span.start);
        let file = file.display().to_string();
        if !std::io::stderr().is_terminal() {
            return Self(joined(&mistakes, |mistake| line(&file, text, mistake)));
        }
        let excerpts = joined(&mistakes, |mistake| excerpt(&file, text, mistake));
        Self(format!("{file} cannot work\n{excerpts}"))
    }

    /// What is wrong with `file` as a whole.
    pub(crate) fn whole(file: &Path, what: impl fmt::Display) -> Self {
        Self(format!("{}: {what}", file.display()))
    }
}

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Reported {}

fn joined(mistakes: &[Mistake], show: impl Fn(&Mistake) -> String) -> String {
    mistakes.iter().map(show).collect::<Vec<_>>().join("\n")
}

fn line(file: &str, text: &str, mistake: &Mistake) -> String {
    let before = text.get(..mistake.span.start).unwrap_or(text);
    let row = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let mend = mistake.mend.as_ref().map(|mend| format!("; {mend}")).unwrap_or_default();
    format!("{file}:{row}:{column}: {}{mend}", mistake.what)
}

fn excerpt(file: &str, text: &str, mistake: &Mistake) -> String {
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let place = (file, mistake.span.clone());
    let label = mistake.mend.as_deref().unwrap_or("here");
    let report = Report::build(ReportKind::Custom("mistake", Color::Red), place.clone())
        .with_config(Config::default().with_index_type(IndexType::Byte).with_color(colour))
        .with_message(&mistake.what)
        .with_label(Label::new(place).with_message(label))
        .finish();
    let mut shown = Vec::new();
    match report.write((file, Source::from(text)), &mut shown) {
        Ok(()) => String::from_utf8_lossy(&shown).trim_end().to_owned(),
        Err(_) => line(file, text, mistake),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "arch = \"aarch64\"\nå = 1\n";

    fn mistake() -> Mistake {
        Mistake::new(18..20, "unknown key `å`", "leave it out")
    }

    #[test]
    fn a_line_tells_row_and_column() {
        let mistake = Mistake { span: 22..23, mend: None, ..mistake() };
        assert_eq!(line("system.toml", TEXT, &mistake), "system.toml:2:5: unknown key `å`");
    }

    #[test]
    fn a_line_ends_with_the_mend() {
        let line = line("system.toml", TEXT, &Mistake { span: 17..19, ..mistake() });
        assert_eq!(line, "system.toml:2:1: unknown key `å`; leave it out");
    }

    #[test]
    fn an_excerpt_shows_the_line_and_the_mend() {
        let shown = excerpt("system.toml", TEXT, &Mistake { span: 17..19, ..mistake() });
        for part in ["unknown key `å`", "system.toml:2:1", "leave it out", "2 │"] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
    }

    #[test]
    fn mistakes_are_shown_in_the_order_of_the_file() {
        let late = Mistake::new(17..19, "late", "mend");
        let early = Mistake::new(0..4, "early", "mend");
        let reported = Reported::new(Path::new("x.toml"), TEXT, vec![late, early]).to_string();
        assert!(reported.find("early") < reported.find("late"));
    }
}
