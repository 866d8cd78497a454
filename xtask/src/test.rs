//! `cargo xtask test`: everything that can be tested here, each result one line, the sum at the end.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bulkhead::config::Architecture;

use crate::machine::Machine;
use crate::progress::{self, Step};
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
    if fast {
        return host(tally);
    }
    let fetched = std::thread::scope(|scope| {
        // What comes from the network comes while the host's tests keep the processors busy.
        let fetching = scope.spawn(fetch);
        host(tally);
        fetching.join().unwrap_or_else(|_| bail!("fetching failed: what it said stands above"))
    });
    booted(tally, fetched);
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
                progress::say(&format!("ok {name} ({seconds:.1} s)"));
            }
            Err(error) => {
                counts.1 += 1;
                progress::say(&format!("not ok {name} ({seconds:.1} s)\n{error:#}"));
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
        progress::say(&format!("ok host tests ({:.1} s)", start.elapsed().as_secs_f32()));
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

/// Emulators and payloads.
fn fetch() -> anyhow::Result<()> {
    setup::emulators()?;
    for (architecture, _, payloads) in PREPARED {
        payloads.iter().try_for_each(|name| payload::resolve(name, architecture).map(drop))?;
    }
    Ok(())
}

/// Test guests and scenarios under the emulators.
fn booted(tally: &Tally, fetched: anyhow::Result<()>) {
    let mut ready = false;
    tally.check("hypervisor, test guests and payloads", || {
        fetched?;
        for (architecture, guest, _) in PREPARED {
            build::hypervisor(architecture)?;
            build::guest(guest)?;
            for line in payload::describe_all(architecture)? {
                progress::say(&format!("# {line}"));
            }
        }
        ready = true;
        Ok(())
    });
    if !ready {
        return;
    }
    match jobs() {
        Ok(jobs) => in_lanes(tally, jobs),
        Err(error) => tally.report("scenarios", Duration::ZERO, Err(error)),
    }
}

/// Something to boot, which counts for one.
struct Job {
    name: String,
    is_for_bochs: bool,
    /// How long it may take at most: nobody knows better beforehand how long it will.
    limit: Duration,
    boot: Box<dyn FnOnce() -> anyhow::Result<()> + Send>,
}

/// All of them, in the order in which they begin.
fn jobs() -> anyhow::Result<Vec<Job>> {
    let mut jobs = scenarios(&workspace::root().join("tests/scenarios"))?;
    for (image, machine) in damage::SYSTEMS {
        jobs.extend(damage::KINDS.map(|(name, damage)| Job {
            name: format!("{name}, {}", machine.name()),
            is_for_bochs: machine == Machine::BochsVmx,
            limit: damage::LIMIT,
            boot: Box::new(move || damage::run(image, machine, damage)),
        }));
    }
    jobs.extend(compare::SYSTEMS.map(|(image, machine)| Job {
        name: format!("compare-native, {}", machine.name()),
        is_for_bochs: machine == Machine::BochsVmx,
        limit: compare::LIMIT,
        boot: Box::new(move || compare::run(image, machine)),
    }));
    sort(&mut jobs);
    Ok(jobs)
}

/// The slowest emulator last: whatever fails elsewhere is told early. The longest first, so that all lanes end together.
fn sort(jobs: &mut [Job]) {
    jobs.sort_by(|one, other| {
        let order = |job: &Job| (job.is_for_bochs, Reverse(job.limit));
        order(one).cmp(&order(other)).then_with(|| one.name.cmp(&other.name))
    });
}

fn scenarios(folder: &Path) -> anyhow::Result<Vec<Job>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    Ok(files.map(scenario_job).collect())
}

fn scenario_job(file: PathBuf) -> Job {
    // One that cannot be read says so when its turn comes.
    let scenario = scenario::file::read(&file).ok();
    let machine = scenario.as_ref().and_then(|scenario| scenario.machine);
    Job {
        name: scenario::name(&file),
        is_for_bochs: machine == Some(Machine::BochsVmx),
        limit: scenario.map_or(Duration::ZERO, |scenario| scenario.limit),
        boot: Box::new(move || play(&file, &workspace::target().join("bulkhead/logs"))),
    }
}

fn in_lanes(tally: &Tally, jobs: Vec<Job>) {
    let waiting = Mutex::new(VecDeque::from(jobs));
    let next = || waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(job) = next() {
                    tally.check(&job.name, job.boot);
                }
            });
        }
    });
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
    fn the_longest_begin_and_the_slowest_emulator_ends() {
        let job = |name: &str, is_for_bochs, seconds| Job {
            name: name.to_owned(),
            is_for_bochs,
            limit: Duration::from_secs(seconds),
            boot: Box::new(|| Ok(())),
        };
        let mut jobs =
            [job("b", false, 60), job("slow", true, 600), job("a", false, 60), job("long", false, 300)];
        sort(&mut jobs);
        assert_eq!(jobs.map(|job| job.name), ["long", "a", "b", "slow"]);
    }

    #[test]
    fn every_scenario_of_ours_can_be_read() {
        let jobs = scenarios(&workspace::root().join("tests/scenarios")).unwrap();
        assert!(!jobs.is_empty());
        for job in jobs {
            assert!(job.limit > Duration::ZERO, "{}", job.name);
        }
    }

    #[test]
    fn a_failure_is_counted_and_is_the_outcome() {
        let tally = Tally::default();
        tally.check("good", || Ok(()));
        tally.check("bad", || bail!("no"));
        assert_eq!(tally.close().unwrap_err().to_string(), "1 failed");
    }
}
