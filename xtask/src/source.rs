//! Rust source, looked at letter by letter: what is code, what is comment, what is text, and what is only for tests.
//!
//! Enough of the grammar for counting and for house rules; no more. It never needs the source to compile.

/// What a letter belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Code,
    Comment,
    /// Inside of a string or character literal.
    Text,
}

/// One line of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    /// The code, with what literals hold replaced by blanks.
    pub(crate) code: String,
    /// The comment.
    pub(crate) comment: String,
    /// Whether anything but comment and blanks stands here.
    pub(crate) counts: bool,
    /// Whether it belongs to an item under `#[cfg(test)]`.
    pub(crate) is_test: bool,
}

/// Takes a file apart into lines.
pub(crate) fn lines(text: &str) -> Vec<Line> {
    let letters: Vec<char> = text.chars().collect();
    let kinds = classify(&letters);
    let test = test_letters(&letters, &kinds);
    let mut lines = Vec::new();
    let mut start = 0;
    while start < letters.len() {
        let end =
            letters[start..].iter().position(|&letter| letter == '\n').map_or(letters.len(), |at| start + at);
        lines.push(line(&letters[start..end], &kinds[start..end], test[start..end].contains(&true)));
        start = end + 1;
    }
    lines
}

fn line(letters: &[char], kinds: &[Kind], is_test: bool) -> Line {
    let only = |wanted: Kind| -> String {
        letters.iter().zip(kinds).map(|(&letter, &kind)| if kind == wanted { letter } else { ' ' }).collect()
    };
    let counts =
        letters.iter().zip(kinds).any(|(letter, &kind)| kind != Kind::Comment && !letter.is_whitespace());
    Line { code: only(Kind::Code), comment: only(Kind::Comment), counts, is_test }
}

fn classify(letters: &[char]) -> Vec<Kind> {
    let mut kinds = vec![Kind::Code; letters.len()];
    let mut at = 0;
    while at < letters.len() {
        let (kind, end) = token(letters, at);
        kinds[at..end].fill(kind);
        at = end;
    }
    kinds
}

/// The kind of what starts here, and where it ends.
fn token(letters: &[char], at: usize) -> (Kind, usize) {
    let next = letters.get(at + 1).copied();
    match (letters[at], next) {
        ('/', Some('/')) => (Kind::Comment, find(letters, at, |letter| letter == '\n')),
        ('/', Some('*')) => (Kind::Comment, block_comment_end(letters, at)),
        ('"', _) => (Kind::Text, string_end(letters, at, '"')),
        ('r', Some('"' | '#')) if !follows_word(letters, at) => match raw_string_end(letters, at) {
            Some(end) => (Kind::Text, end),
            None => (Kind::Code, at + 1),
        },
        ('\'', _) if is_character(letters, at) => (Kind::Text, string_end(letters, at, '\'')),
        _ => (Kind::Code, at + 1),
    }
}

fn find(letters: &[char], from: usize, matches: impl Fn(char) -> bool) -> usize {
    letters[from..].iter().position(|&letter| matches(letter)).map_or(letters.len(), |at| from + at)
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// `br"` starts a literal, `bar"` does not.
fn follows_word(letters: &[char], at: usize) -> bool {
    match at.checked_sub(1).map(|before| letters[before]) {
        Some('b' | 'c') => at >= 2 && is_word(letters[at - 2]),
        Some(letter) => is_word(letter),
        None => false,
    }
}

fn block_comment_end(letters: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut at = from;
    while at < letters.len() {
        match (letters[at], letters.get(at + 1)) {
            ('/', Some('*')) => depth += 1,
            ('*', Some('/')) => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    letters.len()
}

fn string_end(letters: &[char], from: usize, quote: char) -> usize {
    let mut at = from + 1;
    while at < letters.len() {
        match letters[at] {
            '\\' => at += 1,
            letter if letter == quote => return at + 1,
            _ => {}
        }
        at += 1;
    }
    letters.len()
}

fn raw_string_end(letters: &[char], from: usize) -> Option<usize> {
    let open = find(letters, from + 1, |letter| letter != '#');
    let hashes = open - from - 1;
    if letters.get(open) != Some(&'"') {
        return None;
    }
    let closes = |at: usize| {
        letters[at] == '"' && letters[at + 1..].iter().take_while(|&&l| l == '#').count() >= hashes
    };
    let end = (open + 1..letters.len()).find(|&at| closes(at));
    Some(end.map_or(letters.len(), |at| at + 1 + hashes))
}

/// A quote starts a character unless it starts a lifetime.
fn is_character(letters: &[char], at: usize) -> bool {
    letters.get(at + 1) == Some(&'\\') || letters.get(at + 2) == Some(&'\'')
}

/// Which letters belong to items under `#[cfg(test)]`.
fn test_letters(letters: &[char], kinds: &[Kind]) -> Vec<bool> {
    let attribute: Vec<char> = "#[cfg(test)]".chars().collect();
    let mut test = vec![false; letters.len()];
    let mut at = 0;
    while at < letters.len() {
        if kinds[at] == Kind::Code && letters[at..].starts_with(&attribute) {
            let end = item_end(letters, kinds, at + attribute.len());
            test[at..end].fill(true);
            at = end;
        } else {
            at += 1;
        }
    }
    test
}

/// The end of the item that starts here: its closing brace, or a semicolon outside of all brackets.
fn item_end(letters: &[char], kinds: &[Kind], from: usize) -> usize {
    let mut depth = 0_usize;
    for at in from..letters.len() {
        if kinds[at] != Kind::Code {
            continue;
        }
        match letters[at] {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && letters[at] == '}' {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    letters.len()
}

/// The modules that only tests have and that lie in files of their own.
pub(crate) fn test_modules(lines: &[Line]) -> impl Iterator<Item = &str> {
    let tests = lines.iter().filter(|line| line.is_test);
    tests.filter_map(|line| line.code.trim().strip_suffix(';')?.split_once("mod ").map(|(_, name)| name))
}

/// Whether `word` occurs as a whole word; `_` separates words too, so that `MSR_EFER` holds `MSR`.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    text.split(|letter: char| !letter.is_alphanumeric()).any(|part| part.eq_ignore_ascii_case(word))
}

/// The lines on which an unsafe block, function, implementation or extern block begins, each with what it is.
pub(crate) fn unsafe_places(lines: &[Line]) -> Vec<(usize, Unsafe)> {
    let mut places = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        for (at, _) in line.code.match_indices("unsafe") {
            let before = line.code[..at].chars().next_back();
            let after = &line.code[at + "unsafe".len()..];
            if before.is_some_and(is_word) || after.chars().next().is_some_and(is_word) {
                continue;
            }
            let following = lines.get(index + 1).map_or("", |next| next.code.as_str());
            let rest = if after.trim().is_empty() { following.trim_start() } else { after.trim_start() };
            let kind = match rest {
                _ if rest.starts_with('{') => Unsafe::Block,
                _ if rest.starts_with("impl") => Unsafe::Implementation,
                _ => Unsafe::Other,
            };
            places.push((index, kind));
        }
    }
    places
}

/// What follows the word `unsafe`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unsafe {
    /// A block, which must say why it is sound.
    Block,
    /// An implementation, which must say so too.
    Implementation,
    /// A function, trait, attribute or extern block, whose duties stand in its documentation.
    Other,
}

/// Whether the comment on this line, or right above its statement, says why the unsafe code is sound.
pub(crate) fn has_safety_comment(lines: &[Line], index: usize) -> bool {
    /// A statement may begin some lines before its unsafe block.
    const STATEMENT_LINES: usize = 4;
    let says_why = |line: &Line| line.comment.contains("SAFETY:");
    if says_why(&lines[index]) {
        return true;
    }
    let mut code_lines = 0;
    for line in lines[..index].iter().rev() {
        if says_why(line) {
            return true;
        }
        let code = line.code.trim();
        let is_comment = code.is_empty() && !line.comment.trim().is_empty();
        if is_comment || code.starts_with("#[") {
            continue;
        }
        code_lines += 1;
        if code.is_empty() || code.ends_with([';', '}']) || code_lines > STATEMENT_LINES {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        lines(text)
            .into_iter()
            .map(|line| line.code.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        assert_eq!(code("let a = \"unsafe { // }\"; // unsafe"), ["let a = ;"]);
        assert_eq!(code("/* a /* b */ c */ x"), ["x"]);
        assert_eq!(code("r#\"a\" unsafe\"# + br\"b\""), ["+ b"]);
        assert_eq!(code("'\\'' 'a' '\"' &'a str"), ["&'a str"]);
        assert_eq!(code("let r#type = 1;"), ["let r#type = 1;"]);
    }

    #[test]
    fn only_lines_with_code_count() {
        let text = "//! Doc.\n\nuse a;\n/* b\nc */\nlet s = \"\n text \n\";\n";
        let counted: Vec<bool> = lines(text).iter().map(|line| line.counts).collect();
        assert_eq!(counted, [false, false, true, false, false, true, true, true]);
    }

    #[test]
    fn tests_are_told_apart() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() { if x { \"}\" } }\n}\nfn c() {}\n#[cfg(test)]\nuse d;\nfn e() {}\n";
        let test: Vec<bool> = lines(text).iter().map(|line| line.is_test).collect();
        assert_eq!(test, [false, true, true, true, true, false, true, true, false]);
    }

    #[test]
    fn unsafe_code_is_found_where_it_is_code() {
        let text = "unsafe { a() }\nlet x = unsafe\n{ b };\nunsafe impl A for B {}\nunsafe fn c();\n// unsafe {\nnot_unsafe {\n\"unsafe {\"";
        let expected =
            [(0, Unsafe::Block), (1, Unsafe::Block), (3, Unsafe::Implementation), (4, Unsafe::Other)];
        assert_eq!(unsafe_places(&lines(text)), expected);
    }

    #[test]
    fn a_reason_stands_above_the_statement() {
        let has = |text: &str| {
            let lines = lines(text);
            has_safety_comment(&lines, unsafe_places(&lines)[0].0)
        };
        assert!(has("// SAFETY: so.\nunsafe { a() }"));
        assert!(has("// SAFETY: so,\n// and so.\n#[allow(x)]\nlet a =\n    unsafe { a() };"));
        assert!(has("unsafe { a() } // SAFETY: so."));
        assert!(!has("// SAFETY: so.\nlet b = 1;\nunsafe { a() }"));
        assert!(!has("unsafe { a() }"));
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("let msr = 1", "msr") && has_word("MSR_EFER", "msr"));
        assert!(!has_word("accept(inept)", "ept"));
    }
}
