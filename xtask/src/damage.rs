//! Archives that are not what was packed: Bulkhead must refuse them at boot, in one line, and end.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::boot::{self, Under};
use crate::console::Event;
use crate::frames::LOG;
use crate::machine::{Clock, Machine, Settings};
use crate::scenario::transcript::Transcript;
use crate::scenario::{DEFAULT_CPUS, DEFAULT_RAM};
use crate::workspace;

/// Small systems, whose archives are damaged, and the machines to boot them on.
pub(crate) const SYSTEMS: [(&str, Machine); 2] = [
    ("tests/images/guest-tap-basic", Machine::QemuVirt),
    ("tests/images/guest-tap-x86-modes", Machine::QemuQ35Svm),
];
/// How long a refusal may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// What Bulkhead says when it boots nothing.
const REFUSAL: &str = "nothing is booted";

type Damage = fn(&mut Vec<u8>);

/// Every kind of damage, with its name.
pub(crate) const KINDS: [(&str, Damage); 4] = [
    ("archive cut short", |archive| archive.truncate(archive.len() / 2)),
    ("archive with one bit flipped", |archive| {
        let middle = archive.len() / 2;
        archive[middle] ^= 1;
    }),
    ("archive with a damaged start", |archive| archive[0] ^= 0xff),
    ("archive that is none", |archive| archive.fill(0)),
];

/// Boots a damaged archive and looks for the refusal.
pub(crate) fn run(image: &str, machine: Machine, damage: Damage) -> anyhow::Result<()> {
    let prepared = boot::prepare(&workspace::root().join(image), Under::Bulkhead)?;
    prepared.damage(damage)?;
    let settings = Settings {
        machine,
        cpu: None,
        cpus: DEFAULT_CPUS,
        ram_bytes: DEFAULT_RAM,
        clock: Clock::Host,
        extra: Vec::new(),
    };
    let mut emulator = prepared.start(&settings)?;
    let mut transcript = Transcript::default();
    let deadline = Instant::now() + LIMIT;
    loop {
        match emulator.wait(Some(deadline))? {
            Event::Printed(pieces) => transcript.add(pieces),
            Event::Late => {
                bail!("the machine did not end within {} s\n{}", LIMIT.as_secs(), transcript.tail())
            }
            Event::Ended(ending) => {
                let log = transcript.text(LOG);
                if ending.is_good() && log.contains(REFUSAL) && !log.contains("panic") {
                    return Ok(());
                }
                bail!("no refusal ({ending})\n{}", transcript.tail());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_damage_changes_the_archive() {
        for (name, damage) in KINDS {
            let mut archive = vec![1; 64];
            damage(&mut archive);
            assert_ne!(archive, vec![1; 64], "{name}");
        }
    }
}
