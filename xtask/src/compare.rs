//! The guest's own view: what Linux complains about under Bulkhead must not be more than what it complains about on the
//! emulator's machine itself.
//!
//! Both boot with a clock that counts instructions. With the host's time the emulator is so slow, and so unsteady on a
//! busy computer, that Linux gives up measuring one timer against another, now here, now there.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use regex::Regex;

use crate::boot::Under;
use crate::machine::Machine;
use crate::scenario::{self, file};
use crate::workspace;

/// The systems that are compared, and where. QEMU tells a PC's kernel that it runs on a hypervisor, so ours is told too: it takes what
/// it misses there less ill.
pub(crate) const SYSTEMS: [(&str, Machine); 2] =
    [("images/linux-aarch64", Machine::QemuVirt), ("tests/images/linux-x86-told", Machine::QemuQ35Svm)];

/// How long a comparison may take: twice what [`STEPS`] may.
pub(crate) const LIMIT: Duration = Duration::from_secs(600);

const STEPS: &str = r#"
image = "."
icount = true
limit = "300 s"
[[step]]
expect = '~ # '
[[step]]
send = "dmesg -r; echo dmesg-\"ends\"\n"
[[step]]
expect = '^dmesg-ends'
[[step]]
send = "poweroff\n"
[end]
machine = "off"
"#;

/// Boots Linux under both and compares.
pub(crate) fn run(image: &str, machine: Machine) -> anyhow::Result<()> {
    let under = complaints(&messages(image, machine, Under::Bulkhead)?);
    let native = complaints(&messages(image, machine, Under::Nothing)?);
    let new: Vec<&str> = under.difference(&native).map(String::as_str).collect();
    if !new.is_empty() {
        bail!("Linux complains under Bulkhead, but not natively:\n  {}", new.join("\n  "));
    }
    Ok(())
}

fn messages(image: &str, machine: Machine, under: Under) -> anyhow::Result<String> {
    let mut scenario = file::parse(STEPS)?;
    scenario.image = workspace::root().join(image);
    (scenario.machine, scenario.under) = (Some(machine), under);
    let played = scenario::play(&scenario, &mut |_| {})?;
    if let Some(failure) = played.failure {
        bail!("{failure} ({under:?})\n{}", played.transcript.tail());
    }
    let texts = played.transcript.all().filter(|(console, _)| *console != crate::frames::LOG);
    Ok(texts.map(|(_, text)| String::from_utf8_lossy(text).into_owned()).collect())
}

/// The messages that warn or sound like it, without what differs from run to run.
fn complaints(console: &str) -> BTreeSet<String> {
    // <PRIORITY>[ TIME] TEXT, where the priority's lowest three bits are the level and 4 is a warning (syslog(2)).
    let message = Regex::new(r"(?m)^<(\d+)>\[\s*[\d.]+\] ([^\r\n]*)").expect("the pattern is valid");
    let alarming = Regex::new(r"(?i:error|warn|stall|fail|oops|lockup)|BUG").expect("the pattern is valid");
    let figures =
        Regex::new(r"0x[0-9a-fA-F]+|\b[0-9a-fA-F]*[0-9][0-9a-fA-F]*\b").expect("the pattern is valid");
    let complaints = message.captures_iter(console).filter(|found| {
        let level = found[1].parse::<u32>().map_or(0, |priority| priority & 7);
        level <= 4 || alarming.is_match(&found[2])
    });
    complaints.map(|found| figures.replace_all(found[2].trim_end(), "#").into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_alarming_words_are_complaints_whatever_their_figures() {
        let console = "[    0.1] not raw: error\r\n<6>[    0.000000] Booting Linux\r\n<4>[    1.5] odd at 0xffff1234\r\n\
            <6>[    2.0] rcu: stall on CPU 3\r\n<28>[    3.0] systemd warns\r\n";
        let found: Vec<String> = complaints(console).into_iter().collect();
        assert_eq!(found, ["odd at #", "rcu: stall on CPU #", "systemd warns"]);
    }

    #[test]
    fn the_same_complaint_with_other_figures_is_the_same() {
        assert_eq!(complaints("<4>[ 1.0] took 12 ms at 0x10\n"), complaints("<4>[ 2.0] took 9 ms at 0xfe\n"));
    }

    #[test]
    fn the_dialogue_is_a_valid_scenario() {
        assert_eq!(file::parse(STEPS).unwrap().steps.len(), 4);
    }
}
