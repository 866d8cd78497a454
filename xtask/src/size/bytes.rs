//! What each crate adds to a bootable program: the sizes of its symbols.
//!
//! A function belongs to the crate that it is written in, whatever types it was compiled for: a vector of ours is `alloc`'s.
//! One that was compiled into its caller is its caller's. Assembly, literals and gaps have no names, and get a row of their
//! own.

use std::collections::BTreeMap;
use std::fmt;

use object::{Object, ObjectSection, ObjectSymbol, SectionIndex, SectionKind};

/// Whose the functions without a name of Rust's are: memcpy and the like.
const RUNTIME: &str = "compiler_builtins";
/// What has no name at all.
const UNNAMED: &str = "(assembly, literals, gaps)";

/// Bytes by kind of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Bytes {
    text: u64,
    constants: u64,
    data: u64,
    zeroed: u64,
}

impl Bytes {
    fn of(kind: SectionKind, size: u64) -> Self {
        match kind {
            SectionKind::Text => Self { text: size, ..Self::default() },
            SectionKind::ReadOnlyData | SectionKind::ReadOnlyString | SectionKind::ReadOnlyDataWithRel => {
                Self { constants: size, ..Self::default() }
            }
            SectionKind::Data => Self { data: size, ..Self::default() },
            SectionKind::UninitializedData => Self { zeroed: size, ..Self::default() },
            _ => Self::default(),
        }
    }

    fn total(self) -> u64 {
        self.text + self.constants + self.data + self.zeroed
    }
}

impl std::ops::AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        self.text += other.text;
        self.constants += other.constants;
        self.data += other.data;
        self.zeroed += other.zeroed;
    }
}

impl std::ops::Sub for Bytes {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            text: self.text - other.text,
            constants: self.constants - other.constants,
            data: self.data - other.data,
            zeroed: self.zeroed - other.zeroed,
        }
    }
}

/// A program's bytes by crate.
pub(super) struct Table {
    /// The largest first, what has no name last.
    rows: Vec<(String, Bytes)>,
    total: Bytes,
}

impl Table {
    /// Reads a program with its symbols.
    pub(super) fn read(content: &[u8]) -> anyhow::Result<Self> {
        let elf = object::File::parse(content)?;
        let mut total = Bytes::default();
        elf.sections().for_each(|section| total += Bytes::of(section.kind(), section.size()));
        let kind_of = |index: SectionIndex| Some(elf.section_by_index(index).ok()?.kind());
        let symbols = elf.symbols().filter(|symbol| symbol.size() > 0).filter_map(|symbol| {
            let kind = kind_of(symbol.section_index()?)?;
            Some(Symbol { address: symbol.address(), size: symbol.size(), name: symbol.name().ok()?, kind })
        });
        Ok(Self::sum(symbols.collect(), total))
    }

    fn sum(mut symbols: Vec<Symbol<'_>>, total: Bytes) -> Self {
        symbols.sort_by_key(|symbol| symbol.address);
        let mut crates: BTreeMap<String, Bytes> = BTreeMap::new();
        let (mut named, mut end) = (Bytes::default(), 0);
        for symbol in symbols {
            // Functions with the same code may be one, under two names.
            let start = symbol.address.max(end);
            end = end.max(symbol.address + symbol.size);
            let bytes = Bytes::of(symbol.kind, end - start);
            *crates.entry(crate_of(symbol.name)).or_default() += bytes;
            named += bytes;
        }
        let mut rows: Vec<(String, Bytes)> = crates.into_iter().collect();
        rows.sort_by_key(|(_, bytes)| std::cmp::Reverse(bytes.total() - bytes.zeroed));
        rows.push((UNNAMED.to_owned(), total - named));
        Self { rows, total }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<26} {:>8} {:>10} {:>8} {:>8}", "bytes", "text", "constants", "data", "bss")?;
        let total = ("total".to_owned(), self.total);
        for (name, Bytes { text, constants, data, zeroed }) in self.rows.iter().chain([&total]) {
            writeln!(f, "{name:<26} {text:>8} {constants:>10} {data:>8} {zeroed:>8}")?;
        }
        Ok(())
    }
}

struct Symbol<'a> {
    address: u64,
    size: u64,
    name: &'a str,
    kind: SectionKind,
}

/// The crate of a symbol's function or static: the first of its path. What a trait does for no crate's type (`u32`, `T`,
/// `[T]`) is counted for the trait's; what such a type does by itself can only be the language's own.
fn crate_of(symbol: &str) -> String {
    let Ok(path) = rustc_demangle::try_demangle(symbol) else { return RUNTIME.to_owned() };
    let path = format!("{path:#}");
    let (this, of_trait) = path.split_once(" as ").unwrap_or((&path, ""));
    first_of_path(this).or_else(|| first_of_path(of_trait)).unwrap_or("core").to_owned()
}

/// `a` of `<&mut [a::B]>::c`.
fn first_of_path(path: &str) -> Option<&str> {
    let path = path.trim_start_matches(['<', '&', '[', '(', '*']);
    for before in ["mut ", "const ", "dyn "] {
        if let Some(rest) = path.strip_prefix(before) {
            return first_of_path(rest);
        }
    }
    let end = path.find(|letter: char| !letter.is_alphanumeric() && letter != '_')?;
    (end > 0 && path[end..].starts_with("::")).then_some(&path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_belongs_to_the_crate_that_it_is_written_in() {
        for (symbol, name) in [
            ("_ZN16bulkhead_aarch642hw5start4boot17h9709b6de9039f440E", "bulkhead_aarch64"),
            (
                "_ZN59_$LT$acpi..sdt..Signature$u20$as$u20$core..fmt..Display$GT$3fmt17h4b4d5b1b43e81cd0E",
                "acpi",
            ),
            ("_ZN44_$LT$$RF$T$u20$as$u20$core..fmt..Display$GT$3fmt17h817a50c32b469ffbE", "core"),
            (
                "_RINvNvMs2_NtCscjbO91n7lbb_5alloc7raw_vecINtB8_11RawVecInnerpE7reserve21do_reserve_and_handleNtNtBa_5alloc6GlobalEBa_",
                "alloc",
            ),
            ("_RNvXsZ_NtNtCsg3SjgaGcPXb_4core3fmt3numjNtB7_5Debug3fmt", "core"),
            ("memcpy", "compiler_builtins"),
        ] {
            assert_eq!(crate_of(symbol), name, "{symbol}");
        }
        assert_eq!(first_of_path("<&mut [a::B]>::c"), Some("a"));
        assert_eq!(first_of_path("<char>::escape"), None);
    }

    #[test]
    fn every_byte_is_counted_once_and_the_rest_has_a_row() {
        let symbol = |address, size, name, kind| Symbol { address, size, name, kind };
        let (text, zeroed) = (SectionKind::Text, SectionKind::UninitializedData);
        let symbols = vec![
            symbol(20, 10, "_ZN1b1f17h0000000000000000E", text),
            symbol(0, 10, "_ZN1a1f17h0000000000000000E", text),
            // The same function under another name.
            symbol(20, 10, "_ZN1a1g17h0000000000000000E", text),
            symbol(100, 4, "_ZN1a1S17h0000000000000000E", zeroed),
        ];
        let table = Table::sum(symbols, Bytes { text: 32, zeroed: 4, ..Bytes::default() });
        let row = |name: &str, text, zeroed| (name.to_owned(), Bytes { text, zeroed, ..Bytes::default() });
        assert_eq!(table.rows, [row("a", 10, 4), row("b", 10, 0), row(UNNAMED, 12, 0)]);
    }
}
