//! Entries of /etc/apt: read in both of apt's formats, written in one (sources.list(5)).

use std::fmt;

/// One entry: where packages come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// Everything else that bears on trust or transport, such as `Signed-By`.
    options: Vec<(String, String)>,
}

/// Fields and options that are said anew by whoever uses an entry, or that say nothing about its origin.
const DROPPED: [&str; 8] =
    ["types", "uris", "suites", "components", "enabled", "architectures", "arch", "description"];

impl Source {
    /// Whether the entry serves this suite.
    pub(crate) fn has_suite(&self, suite: &str) -> bool {
        self.suites.iter().any(|own| own == suite)
    }

    /// Whether the entry has what Debian itself consists of.
    fn is_main(&self) -> bool {
        self.components.iter().any(|part| part == "main")
    }

    /// The same origin, another suite.
    pub(crate) fn with_suite(&self, suite: &str) -> Self {
        Self { suites: vec![suite.to_owned()], ..self.clone() }
    }
}

impl fmt::Display for Source {
    /// One stanza in the deb822 format, with the empty line that ends it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "Types: deb\nURIs: {}", self.uris.join(" "))?;
        writeln!(formatter, "Suites: {}\nComponents: {}", self.suites.join(" "), self.components.join(" "))?;
        for (name, value) in &self.options {
            writeln!(formatter, "{name}: {value}")?;
        }
        writeln!(formatter)
    }
}

/// What Debian's archive also calls its releases, each in its turn.
const TURNS: [&str; 4] = ["stable", "oldstable", "oldoldstable", "testing"];

/// The name by which these entries have the release of this codename: that, or the turn that is followed instead.
pub(crate) fn name_of_release<'a>(sources: &[Source], codename: &'a str) -> Option<&'a str> {
    let is_served = |name: &&str| sources.iter().any(|source| source.is_main() && source.has_suite(name));
    std::iter::once(codename).chain(TURNS).find(is_served)
}

/// The entries that belong to a release and to nothing else: its main, updates and security suites, component `main`.
pub(crate) fn for_release(sources: &[Source], name: &str) -> Vec<Source> {
    let wanted = ["", "-updates", "-security"].map(|suffix| format!("{name}{suffix}"));
    let narrowed = sources.iter().filter(|source| source.is_main()).map(|source| {
        let suites = source.suites.iter().filter(|suite| wanted.contains(suite)).cloned().collect();
        Source { suites, components: vec!["main".to_owned()], ..source.clone() }
    });
    narrowed.filter(|source| !source.suites.is_empty()).collect()
}

/// Reads the one-line format: `deb [options] uri suite components...`.
pub(crate) fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t', '[']) {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inside) => inside.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    let options = options.split_whitespace().filter_map(|option| {
        let (name, value) = option.split_once('=')?;
        Some((name.to_owned(), value.replace(',', " ")))
    });
    usable(Source {
        uris: vec![uri],
        suites: vec![suite],
        components: words.collect(),
        options: options.filter(|(name, _)| is_kept(name)).collect(),
    })
}

/// Reads the deb822 format: stanzas of `Field: value`, continued by lines that start with a blank.
pub(crate) fn parse_stanzas(text: &str) -> Vec<Source> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let stanzas = lines.split(|line| line.trim().is_empty());
    stanzas.filter_map(|lines| parse_stanza(&fields(lines))).collect()
}

fn fields(lines: &[&str]) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    fields
}

fn parse_stanza(fields: &[(String, String)]) -> Option<Source> {
    let field =
        |name: &str| fields.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let words = |name: &str| -> Option<Vec<String>> {
        Some(field(name)?.split_whitespace().map(str::to_owned).collect())
    };
    if field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no")) {
        return None;
    }
    if !words("Types")?.iter().any(|kind| kind == "deb") {
        return None;
    }
    usable(Source {
        uris: words("URIs")?,
        suites: words("Suites")?,
        components: words("Components").unwrap_or_default(),
        options: fields.iter().filter(|(name, _)| is_kept(name)).cloned().collect(),
    })
}

fn is_kept(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !DROPPED.contains(&name.as_str()) && !name.starts_with("x-")
}

/// An entry without an address, or on a medium that must be put in by hand, helps nobody.
fn usable(source: Source) -> Option<Source> {
    let reachable = !source.uris.is_empty() && !source.uris.iter().any(|uri| uri.starts_with("cdrom:"));
    reachable.then_some(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
        Components: main contrib\nSigned-By: /keys/debian.gpg\nArchitectures: amd64\n\n\
        Types: deb deb-src\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main\n\
        Signed-By:\n -----BEGIN\n .\n AAAA\n\n\
        Types: deb\nEnabled: no\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n";

    #[test]
    fn stanzas_keep_their_keys_and_lose_what_is_said_anew() {
        let sources = parse_stanzas(STANZAS);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].options, [("Signed-By".to_owned(), "/keys/debian.gpg".to_owned())]);
        assert_eq!(sources[1].options[0].1, "\n -----BEGIN\n .\n AAAA");
    }

    #[test]
    fn a_written_entry_is_read_back_the_same() {
        for source in parse_stanzas(STANZAS) {
            assert_eq!(parse_stanzas(&source.to_string()), [source]);
        }
    }

    #[test]
    fn one_line_entries_are_read_with_and_without_options() {
        let text = "# deb http://off.example bookworm main\n\
            deb [arch=amd64,arm64 signed-by=/k.gpg trusted=yes] http://mirror.example/debian bookworm main contrib # why\n\
            deb http://mirror.example/debian bookworm-updates main\n\
            deb-src http://mirror.example/debian bookworm main\n\
            deb cdrom:[Debian]/ bookworm main\n";
        let sources = parse_list(text);
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].components, ["main", "contrib"]);
        let expected =
            [("signed-by", "/k.gpg"), ("trusted", "yes")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(sources[0].options, expected);
    }

    #[test]
    fn strangers_in_the_folder_are_left_out() {
        let text = "deb http://mirror.example/debian bookworm main\n\
            deb http://other.example/apt cloud-sdk-bookworm main\n\
            deb http://node.example nodistro main\n\
            deb http://mirror.example/debian bookworm-backports main\n\
            deb http://mirror.example/debian bookworm non-free\n";
        let kept = for_release(&parse_list(text), "bookworm");
        assert_eq!(kept.len(), 1);
        assert!(kept[0].has_suite("bookworm"));
    }

    #[test]
    fn a_release_is_known_by_its_codename_or_by_its_turn() {
        let name = |text: &str| name_of_release(&parse_list(text), "bookworm");
        let follows = "deb http://mirror.example/debian oldstable main\n\
            deb http://mirror.example/debian oldstable-updates main\n\
            deb http://mirror.example/debian-security oldstable-security main\n";
        assert_eq!(name(follows), Some("oldstable"));
        assert_eq!(for_release(&parse_list(follows), "oldstable").len(), 3);
        let stranger = "deb http://other.example/browser stable main\n";
        assert_eq!(
            name(&format!("{stranger}deb http://mirror.example/debian bookworm main\n")),
            Some("bookworm")
        );
        assert_eq!(name("deb http://mirror.example/debian trixie main\n"), None);
        assert_eq!(name("deb http://other.example/engine stable edge\n"), None);
    }

    #[test]
    fn backports_come_from_where_the_release_comes_from() {
        let base = for_release(&parse_stanzas(STANZAS), "bookworm").remove(0);
        let text = base.with_suite("bookworm-backports").to_string();
        let expected = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n\
            Signed-By: /keys/debian.gpg\n\n";
        assert_eq!(text, expected);
    }
}
