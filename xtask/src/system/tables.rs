//! `system.toml` as it is written: the tables, their keys, and what is said about a key or value that cannot be.
//!
//! The tables keep the place of every value, so that later checks can point at it. The JSON schema for editors is made of
//! the same types, doc comments included.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bulkhead::config::{Architecture, OnFault, Privilege, Unmapped};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use toml::Spanned;

use crate::problem::Mistake;

/// Keys that the design has and this release has not.
const LATER: [&str; 6] = ["schedule", "devices", "privileges", "port", "shared-memory", "plan"];

/// A system: one machine divided into virtual machines (VMs).
#[derive(serde::Deserialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "A Bulkhead system")]
pub(crate) struct SystemTable {
    /// The processor architecture of the machine and of all VMs.
    #[schemars(with = "ArchValue")]
    pub(crate) arch: Spanned<ArchValue>,
    /// The virtual machines.
    #[serde(default)]
    #[schemars(with = "Vec<VmTable>", length(min = 1))]
    pub(crate) vm: Vec<Spanned<VmTable>>,
}

/// A processor architecture.
#[derive(serde::Deserialize, JsonSchema, Clone, Copy, Debug)]
pub(crate) enum ArchValue {
    /// ARMv8-A and later, 64 bit.
    #[serde(rename = "aarch64")]
    Aarch64,
    /// PC, 64 bit.
    #[serde(rename = "x86_64")]
    X86_64,
}

/// One virtual machine.
#[derive(serde::Deserialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct VmTable {
    /// Unique: letters, digits, `-` and `_`. Also the name of the VM's console.
    #[schemars(with = "String", regex(pattern = "^[A-Za-z0-9_-]{1,31}$"))]
    pub(crate) name: Spanned<String>,
    /// How many virtual CPUs.
    #[schemars(with = "u32", range(min = 1, max = 16))]
    pub(crate) vcpus: Spanned<u32>,
    /// The physical CPUs that the virtual ones may run on; without it, all of the machine.
    #[serde(default)]
    #[schemars(with = "Vec<u32>")]
    pub(crate) cpus: Vec<Spanned<u32>>,
    /// How much RAM: a multiple of 2 MiB.
    #[schemars(with = "SizeValue")]
    pub(crate) ram: Spanned<SizeValue>,
    /// What the VM boots.
    #[schemars(with = "KernelTable")]
    pub(crate) kernel: Spanned<KernelTable>,
    /// What follows a fault of the guest.
    #[serde(default)]
    pub(crate) on_fault: OnFaultValue,
    /// What an access to a place without memory or device does.
    #[serde(default)]
    pub(crate) unmapped: UnmappedValue,
    /// x86_64 only: whether CPUID tells the guest that it is one, by the leaf 0x4000_0000. Without it, `false`.
    #[schemars(with = "Option<bool>")]
    pub(crate) hypervisor_leaf: Option<Spanned<bool>>,
    /// What the VM may do that others may not.
    #[serde(default)]
    pub(crate) privileges: Vec<PrivilegeValue>,
}

/// What a VM boots.
#[derive(serde::Deserialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct KernelTable {
    /// The kernel: a path relative to this file, or a name such as `debian:linux-cloud`. Its format is seen from its content.
    #[schemars(with = "String")]
    pub(crate) file: Spanned<String>,
    /// The initial RAM disk: a path relative to this file, or a name such as `debian:busybox-initrd`.
    #[schemars(with = "Option<String>")]
    pub(crate) initrd: Option<Spanned<String>>,
    /// The kernel's command line.
    #[schemars(with = "Option<String>")]
    pub(crate) cmdline: Option<Spanned<String>>,
    /// Says that the file is bytes without a header, copied to `load` and entered at `entry`.
    #[schemars(with = "Option<FormatValue>")]
    pub(crate) format: Option<Spanned<FormatValue>>,
    /// With `format = "flat"`: the guest-physical address of the first byte.
    #[schemars(with = "Option<u64>")]
    pub(crate) load: Option<Spanned<u64>>,
    /// With `format = "flat"`: the guest-physical address of the first instruction; without it, `load`.
    #[schemars(with = "Option<u64>")]
    pub(crate) entry: Option<Spanned<u64>>,
}

/// A kernel format that cannot be seen from the file's content.
#[derive(serde::Deserialize, JsonSchema, Clone, Copy, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FormatValue {
    /// Bytes without a header.
    Flat,
}

/// What a VM may do that others may not.
#[derive(serde::Deserialize, JsonSchema, Clone, Copy, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PrivilegeValue {
    /// To make the hypervisor fail in its service, in order to try out what follows. Never for a system in use.
    ProvokePanic,
}

/// What follows a fault of the guest.
#[derive(serde::Deserialize, JsonSchema, Clone, Copy, Default, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnFaultValue {
    /// The VM stays stopped.
    #[default]
    Stop,
    /// The VM starts again from its pristine image.
    Restart,
}

/// What an access to a place without memory or device does.
#[derive(serde::Deserialize, JsonSchema, Clone, Copy, Default, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UnmappedValue {
    /// What the real machine would do; counted, and logged once for each place.
    #[default]
    AsHardware,
    /// A fault of the VM.
    Stop,
}

impl From<ArchValue> for Architecture {
    fn from(value: ArchValue) -> Self {
        match value {
            ArchValue::Aarch64 => Self::Aarch64,
            ArchValue::X86_64 => Self::X86_64,
        }
    }
}

impl From<OnFaultValue> for OnFault {
    fn from(value: OnFaultValue) -> Self {
        match value {
            OnFaultValue::Stop => Self::Stop,
            OnFaultValue::Restart => Self::Restart,
        }
    }
}

impl From<UnmappedValue> for Unmapped {
    fn from(value: UnmappedValue) -> Self {
        match value {
            UnmappedValue::AsHardware => Self::AsHardware,
            UnmappedValue::Stop => Self::Stop,
        }
    }
}

impl From<PrivilegeValue> for Privilege {
    fn from(value: PrivilegeValue) -> Self {
        match value {
            PrivilegeValue::ProvokePanic => Self::ProvokePanic,
        }
    }
}

/// A number of bytes, written with its unit: `"64 MiB"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SizeValue(pub(crate) u64);

const SIZE_UNITS: [(&str, u32); 3] = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
const SIZE_MEND: &str = "write a whole number and KiB, MiB or GiB, as in \"64 MiB\"";

impl SizeValue {
    /// Reads a size; `None` if it is not one or does not fit into 64 bits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (unit, shift) = SIZE_UNITS.into_iter().find(|(unit, _)| text.ends_with(unit))?;
        let number = text.strip_suffix(unit)?.trim_end();
        let is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = if is_plain { number.parse().ok()? } else { return None };
        number.checked_mul(1 << shift).map(Self)
    }
}

impl<'de> Deserialize<'de> for SizeValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = SizeValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"64 MiB\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SizeValue, E> {
                SizeValue::parse(text)
                    .ok_or_else(|| E::custom(format_args!("`{text}` is not a size; {SIZE_MEND}")))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl JsonSchema for SizeValue {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+ *(KiB|MiB|GiB)$", "examples": ["64 MiB", "1 GiB"] })
    }
}

/// Reads the tables.
pub(crate) fn parse(text: &str) -> Result<SystemTable, Mistake> {
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        explain(error.message(), trimmed(text, span))
    })
}

/// The span without the line break and the spaces that may end it: where a table is meant, its header is enough.
fn trimmed(text: &str, span: Range<usize>) -> Range<usize> {
    let shown = text.get(span.clone()).unwrap_or_default();
    let first_line = shown.lines().next().unwrap_or_default().trim_end();
    span.start..span.start + first_line.len()
}

/// Turns what serde and the TOML parser say into what is wrong and how to mend it.
fn explain(message: &str, span: Range<usize>) -> Mistake {
    let message = message.replace('\n', ", ");
    if let Some((key, known)) =
        message.strip_prefix("unknown field `").and_then(|rest| rest.split_once("`, "))
    {
        return match LATER.contains(&key) {
            true => Mistake::new(span, format!("`{key}` is not supported yet"), "leave it out"),
            false => Mistake::new(span, format!("unknown key `{key}`"), choice(known)),
        };
    }
    if let Some(key) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        return Mistake::new(span, format!("the key `{key}` is missing here"), format!("add `{key} = ...`"));
    }
    if let Some((value, known)) =
        message.strip_prefix("unknown variant `").and_then(|rest| rest.split_once("`, "))
    {
        return Mistake::new(span, format!("`{value}` is not possible here"), choice(known));
    }
    if message == "invalid type: map, expected a sequence" {
        let what = "this is one table, but there may be several";
        return Mistake::new(span, what, "write its name in two pairs of brackets: [[...]]");
    }
    if message.contains("; ") {
        return Mistake::told(span, message);
    }
    match message.split_once(", expected ") {
        Some((what, expected)) => Mistake::new(span, what, format!("write {}", plain_words(expected))),
        None => Mistake::new(span, message, "write it as TOML asks for"),
    }
}

fn choice(known: &str) -> String {
    let known = known.trim_start_matches("expected ").trim_start_matches("one of ");
    format!("known here: {known}")
}

/// serde's word for a type in the integrator's words.
fn plain_words(expected: &str) -> String {
    let type_name = expected.strip_prefix("struct ").map_or(expected, |_| "struct");
    match type_name {
        "u32" | "u64" | "usize" => "a whole number that is not negative".to_owned(),
        "a sequence" => "a list: [ ... ]".to_owned(),
        "struct" => "a table: { key = value, ... }".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "arch = \"aarch64\"\n[[vm]]\nname = \"one\"\nvcpus = 1\nram = \"64 MiB\"\nkernel = { file = \"Image\" }\n";

    /// What is said about the good text with one part replaced: the marked text, what, how to mend.
    fn said(part: &str, instead: &str) -> (String, String) {
        let text = GOOD.replace(part, instead);
        assert_ne!(text, GOOD);
        let mistake = parse(&text).unwrap_err();
        let marked = text[mistake.span].to_owned();
        (marked, format!("{}; {}", mistake.what, mistake.mend.unwrap()))
    }

    #[test]
    fn every_key_is_read() {
        let text = GOOD.replace(
            "{ file = \"Image\" }",
            "{ file = \"a\", initrd = \"b\", cmdline = \"c\", format = \"flat\", load = 0x4000_0000, entry = 1073741828 }\n\
             cpus = [0, 3]\non-fault = \"restart\"\nunmapped = \"stop\"\nhypervisor-leaf = true",
        );
        let system = parse(&text).unwrap();
        let vm = system.vm[0].get_ref();
        let kernel = vm.kernel.get_ref();
        assert_eq!(vm.ram.get_ref().0, 64 << 20);
        assert_eq!(vm.cpus.iter().map(|cpu| *cpu.get_ref()).collect::<Vec<_>>(), [0, 3]);
        assert_eq!(kernel.load.as_ref().map(|load| *load.get_ref()), Some(0x4000_0000));
        assert_eq!(kernel.entry.as_ref().map(|entry| *entry.get_ref()), Some(0x4000_0004));
        assert!(matches!(vm.on_fault, OnFaultValue::Restart));
        assert!(matches!(vm.unmapped, UnmappedValue::Stop));
        assert!(vm.hypervisor_leaf.as_ref().is_some_and(|leaf| *leaf.get_ref()));
    }

    #[test]
    fn an_unknown_key_is_marked_and_the_known_ones_are_listed() {
        let (marked, line) = said("vcpus = 1", "vcpus = 1\nvcpu = 2");
        assert_eq!(marked, "vcpu");
        assert_eq!(
            line,
            "unknown key `vcpu`; known here: `name`, `vcpus`, `cpus`, `ram`, `kernel`, `on-fault`, `unmapped`, `hypervisor-leaf`, `privileges`"
        );
        let (marked, line) = said("[[vm]]", "[network]\n[[vm]]");
        assert_eq!(
            (marked.as_str(), line.as_str()),
            ("network", "unknown key `network`; known here: `arch` or `vm`")
        );
    }

    #[test]
    fn a_key_that_comes_later_is_not_called_unknown() {
        let (marked, line) = said("vcpus = 1", "vcpus = 1\nschedule = { policy = \"credit\" }");
        assert_eq!(
            (marked.as_str(), line.as_str()),
            ("schedule", "`schedule` is not supported yet; leave it out")
        );
        let (_, line) = said("[[vm]]", "[[shared-memory]]\nname = \"camera\"\n[[vm]]");
        assert_eq!(line, "`shared-memory` is not supported yet; leave it out");
    }

    #[test]
    fn a_missing_key_is_asked_for_at_its_table() {
        let (marked, line) = said("name = \"one\"\n", "");
        assert_eq!(
            (marked.as_str(), line.as_str()),
            ("[[vm]]", "the key `name` is missing here; add `name = ...`")
        );
        let (marked, line) = said("file = \"Image\"", "cmdline = \"quiet\"");
        assert_eq!(marked, "{ cmdline = \"quiet\" }");
        assert_eq!(line, "the key `file` is missing here; add `file = ...`");
    }

    #[test]
    fn a_value_of_another_kind_is_marked() {
        let (marked, line) = said("vcpus = 1", "vcpus = \"two\"");
        assert_eq!(marked, "\"two\"");
        assert_eq!(line, "invalid type: string \"two\"; write a whole number that is not negative");
        assert!(said("vcpus = 1", "vcpus = -1").1.ends_with("write a whole number that is not negative"));
        assert!(said("{ file = \"Image\" }", "\"Image\"").1.ends_with("write a table: { key = value, ... }"));
        assert!(said("vcpus = 1", "vcpus = 1\ncpus = 1").1.ends_with("write a list: [ ... ]"));
        assert!(said("[[vm]]", "[vm]").1.ends_with("in two pairs of brackets: [[...]]"));
        let (marked, line) = said("\"aarch64\"", "\"arm\"");
        assert_eq!(marked, "\"arm\"");
        assert_eq!(line, "`arm` is not possible here; known here: `aarch64` or `x86_64`");
    }

    #[test]
    fn a_size_without_a_known_unit_is_refused() {
        let (marked, line) = said("64 MiB", "64 MB");
        assert_eq!(marked, "\"64 MB\"");
        assert_eq!(line, format!("`64 MB` is not a size; {SIZE_MEND}"));
        assert_eq!(said("\"64 MiB\"", "64").1, "invalid type: integer `64`; write a size such as \"64 MiB\"");
    }

    #[test]
    fn sizes_are_read_in_their_units() {
        let sizes =
            ["64 MiB", "1GiB", "4  KiB", "0 MiB"].map(|text| SizeValue::parse(text).map(|size| size.0));
        assert_eq!(sizes, [Some(64 << 20), Some(1 << 30), Some(4096), Some(0)]);
        for text in
            ["", "MiB", "64", "-1 MiB", "+1 MiB", "1.5 GiB", "64 mib", "99999999999999 GiB", "0x10 MiB"]
        {
            assert_eq!(SizeValue::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_not_toml_is_marked() {
        let (_, line) = said("vcpus = 1", "vcpus 1");
        assert!(!line.contains('\n') && line.contains("; "), "{line}");
        assert!(said("vcpus = 1", "vcpus = 1\nvcpus = 2").1.contains("duplicate key"));
    }
}
