//! `cargo xtask test`: everything that can be tested here, each result one line, the sum at the end.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bulkhead::config::Architecture;

use crate::machine::Machine;
use crate::progress::Step;
use crate::{build, command, compare, damage, payload, scenario, setup, workspace};

/// Emulators at a time; more only wait for each other on a small machine.
const AT_A_TIME: usize = 2;
/// How much of a failed host test's output is shown.
const SHOWN_LINES: usize = 80;

/// `cargo xtask test [--fast]`
pub(crate) fn run(fast: bool) -> anyhow::Result<()> {
    let tally = Tally::default();
    all(&tally, fast);
    tally.close()
}

/// All tests, counted.
pub(crate) fn all(tally: &Tally, fast: bool) {
    host(tally);
    if !fast {
        booted(tally);
    }
}

/// How many things held and how many did not.
#[derive(Default)]
pub(crate) struct Tally {
    counts: Mutex<(usize, usize)>,
}

impl Tally {
    /// Does one thing that counts, and prints how it went.
    pub(crate) fn check(&self, name: &str, thing: impl FnOnce() -> anyhow::Result<()>) {
        let start = Instant::now();
        let outcome = thing();
        self.report(name, start.elapsed(), outcome);
    }

    fn report(&self, name: &str, took: Duration, outcome: anyhow::Result<()>) {
        let mut counts = self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let seconds = took.as_secs_f32();
        match outcome {
            Ok(()) => {
                counts.0 += 1;
                println!("ok {name} ({seconds:.1} s)");
            }
            Err(error) => {
                counts.1 += 1;
                println!("not ok {name} ({seconds:.1} s)\n{error:#}");
            }
        }
    }

    fn add(&self, passed: usize, failed: usize) {
        let mut counts = self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        counts.0 += passed;
        counts.1 += failed;
    }

    /// Prints the sum; an error if anything failed.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        let (passed, failed) = self.counts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        println!("{passed} passed, {failed} failed");
        if failed > 0 {
            bail!("{failed} failed");
        }
        Ok(())
    }
}

/// Each host test counts by itself.
fn host(tally: &Tally) {
    let start = Instant::now();
    let output = {
        let _step = Step::start("testing on the host");
        command::capture(workspace::cargo("test").args(["--no-fail-fast"]))
    };
    let outcome = output.and_then(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (passed, failed) = host_counts(&text);
        tally.add(passed, failed.saturating_sub(1));
        if output.status.success() {
            return Ok(());
        }
        if failed > 0 {
            bail!("{}", host_failures(&text));
        }
        bail!("{}", command::last_lines(&String::from_utf8_lossy(&output.stderr), SHOWN_LINES));
    });
    // The line of the whole counts for one: a failed test, or else nothing that was not counted yet.
    if outcome.is_ok() {
        println!("ok host tests ({:.1} s)", start.elapsed().as_secs_f32());
    } else {
        tally.report("host tests", start.elapsed(), outcome);
    }
}

/// Sums up `test result: ok. 3 passed; 0 failed; ...`.
fn host_counts(text: &str) -> (usize, usize) {
    let number_before = |line: &str, word: &str| -> usize {
        let before = line.split(word).next().filter(|before| before.len() < line.len());
        before.and_then(|before| before.split_whitespace().last()?.parse().ok()).unwrap_or(0)
    };
    let results = text.lines().filter(|line| line.starts_with("test result: "));
    results.fold((0, 0), |(passed, failed), line| {
        (passed + number_before(line, " passed"), failed + number_before(line, " failed"))
    })
}

/// What the failed tests said.
fn host_failures(text: &str) -> String {
    let mut shown = String::new();
    for part in text.split("\nfailures:\n").skip(1).step_by(2) {
        shown.push_str(&command::last_lines(part, SHOWN_LINES));
        shown.push('\n');
    }
    shown
}

/// What is built and fetched before anything boots: architecture, any of its test guests, its payloads.
const PREPARED: [(Architecture, &str, &[&str]); 2] = [
    (Architecture::Aarch64, "bench", &["linux-cloud", "linux-rt", "busybox-initrd"]),
    (
        Architecture::X86_64,
        "bench-x86",
        &["linux-cloud", "linux-rt", "linux", "linux-i386", "busybox-initrd", "busybox-initrd-i386"],
    ),
];

/// Test guests and scenarios under the emulators.
fn booted(tally: &Tally) {
    let mut ready = false;
    tally.check("hypervisor, test guests and payloads", || {
        setup::emulators()?;
        for (architecture, guest, payloads) in PREPARED {
            build::hypervisor(architecture)?;
            build::guest(guest)?;
            payloads.iter().try_for_each(|name| payload::resolve(name, architecture).map(drop))?;
            for line in payload::describe_all(architecture)? {
                println!("# {line}");
            }
        }
        ready = true;
        Ok(())
    });
    if !ready {
        return;
    }
    match scenario_files(&workspace::root().join("tests/scenarios")) {
        Ok(files) => play_all(tally, files),
        Err(error) => tally.report("scenarios", Duration::ZERO, Err(error)),
    }
}

fn scenario_files(folder: &Path) -> anyhow::Result<VecDeque<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    // The slowest emulator last: whatever fails elsewhere is told early.
    files.sort_by_key(|path| (is_for_bochs(path), path.clone()));
    Ok(files.into())
}

fn is_for_bochs(path: &Path) -> bool {
    scenario::file::read(path).is_ok_and(|scenario| scenario.machine == Some(Machine::BochsVmx))
}

fn play_all(tally: &Tally, files: VecDeque<PathBuf>) {
    let waiting = Mutex::new(files);
    let logs = workspace::target().join("bulkhead/logs");
    let next = || waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(file) = next() {
                    let name = scenario::name(&file);
                    tally.check(&name, || play(&file, &logs));
                }
            });
        }
    });
    for (image, machine) in damage::SYSTEMS {
        for (name, damage) in damage::KINDS {
            tally.check(&format!("{name}, {}", machine.name()), || damage::run(image, machine, damage));
        }
    }
    for (image, machine) in compare::SYSTEMS {
        tally.check(&format!("compare-native, {}", machine.name()), || compare::run(image, machine));
    }
}

fn play(file: &Path, logs: &Path) -> anyhow::Result<()> {
    let mut told = String::new();
    let outcome = scenario::run_file(file, Some(logs), &mut |line| {
        told.push_str(line);
        told.push('\n');
    });
    outcome.map_err(|error| anyhow::anyhow!("{told}{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_programs_are_added_up() {
        let text = "running 3 tests\ntest a ... ok\n\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\n\
            test result: FAILED. 10 passed; 2 failed; 0 ignored\n";
        assert_eq!(host_counts(text), (13, 2));
        assert_eq!(host_counts("nothing ran"), (0, 0));
    }

    #[test]
    fn what_failed_is_shown_once() {
        let text = "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\nwhy\n\n\nfailures:\n    a\n\ntest result: FAILED.";
        let shown = host_failures(text);
        assert!(shown.contains("why") && !shown.contains("test result"), "{shown}");
    }

    #[test]
    fn a_failure_is_counted_and_is_the_outcome() {
        let tally = Tally::default();
        tally.check("good", || Ok(()));
        tally.check("bad", || bail!("no"));
        assert_eq!(tally.close().unwrap_err().to_string(), "1 failed");
    }
}
