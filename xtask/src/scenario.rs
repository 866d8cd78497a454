//! `cargo xtask scenario`: boots a machine and holds it to a script. Nothing waits for time to pass: the limit
//! ends what takes too long, and where a step has times of its own, they hold the guest's clock against the host's.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::boot::{self, Under};
use crate::console::{self, Emulator, Ending, Event};
use crate::frames::LOG;
use crate::machine::{Machine, Settings};
use crate::workspace;

pub(crate) mod file;
pub(crate) mod transcript;

use file::{Action, End, Scenario, Step};
use transcript::Transcript;

/// Memory of a machine whose scenario does not say.
pub(crate) const DEFAULT_RAM: u64 = 1 << 30;
/// Processors of a machine whose scenario does not say.
pub(crate) const DEFAULT_CPUS: u32 = 4;

/// Takes each line that is to be told.
pub(crate) type Teller<'a> = &'a mut dyn FnMut(&str);

/// `cargo xtask scenario FILE...`
pub(crate) fn run(files: &[PathBuf], log: Option<&Path>) -> anyhow::Result<()> {
    let mut failed = 0;
    for path in files {
        println!("scenario {}", path.display());
        let start = Instant::now();
        let outcome = run_file(path, log, &mut |line| println!("{line}"));
        let seconds = start.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => println!("ok {} ({seconds:.1} s)", name(path)),
            Err(error) => {
                println!("not ok {} ({seconds:.1} s)\n{error:#}", name(path));
                failed += 1;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} scenarios failed", files.len());
    }
    Ok(())
}

/// One scenario file; the error shows the failed step and what every console said last.
pub(crate) fn run_file(path: &Path, log: Option<&Path>, tell: Teller<'_>) -> anyhow::Result<()> {
    let scenario = file::read(path)?;
    let played = play(&scenario, tell)?;
    if let Some(folder) = log {
        played.save(&folder.join(name(path)))?;
    }
    match played.failure {
        None => Ok(()),
        Some(failure) => bail!("{failure}\n{}", played.transcript.tail()),
    }
}

/// A scenario's name: its file's.
pub(crate) fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A scenario, played to its end.
pub(crate) struct Played {
    /// What every console printed.
    pub(crate) transcript: Transcript,
    /// Why it failed, if it did.
    pub(crate) failure: Option<String>,
}

impl Played {
    fn save(&self, folder: &Path) -> anyhow::Result<()> {
        for (console, text) in self.transcript.all() {
            workspace::write(&folder.join(format!("{console}.txt")), text)?;
        }
        Ok(())
    }
}

/// Boots the scenario's machine and goes through its steps. An error means that it did not come to that.
pub(crate) fn play(scenario: &Scenario, tell: Teller<'_>) -> anyhow::Result<Played> {
    let prepared = boot::prepare(&scenario.image, scenario.under)?;
    let vms = prepared.vm_names();
    check_consoles(scenario, &vms)?;
    let emulator = prepared.start(&settings(scenario, &prepared.loaded.system))?;
    let mut play = Play {
        emulator,
        vms,
        focus: 0,
        under: scenario.under,
        typed: Instant::now(),
        deadline: Instant::now() + scenario.limit,
        limit: scenario.limit,
        transcript: Transcript::default(),
    };
    let failure = play.steps(scenario, tell).err().map(|error| format!("{error:#}"));
    play.emulator.stop();
    Ok(Played { transcript: play.transcript, failure })
}

fn settings(scenario: &Scenario, system: &bulkhead::config::System) -> Settings {
    let vm = &system.vms[0];
    let (cpus, ram_bytes) = match scenario.under {
        Under::Bulkhead => (DEFAULT_CPUS, DEFAULT_RAM),
        Under::Nothing => (vm.vcpus, vm.ram_bytes),
    };
    Settings {
        machine: scenario.machine.unwrap_or_else(|| Machine::default_for(system.arch, scenario.clock)),
        cpu: scenario.cpu,
        cpus: scenario.cpus.unwrap_or(cpus),
        ram_bytes: scenario.ram_bytes.unwrap_or(ram_bytes),
        clock: scenario.clock,
        extra: scenario.extra.clone(),
    }
}

fn check_consoles(scenario: &Scenario, vms: &[String]) -> anyhow::Result<()> {
    for (index, step) in scenario.steps.iter().enumerate() {
        let number = index + 1;
        match &step.console {
            None if vms.len() > 1 => bail!("step {number} must say which console: {}", vms.join(", ")),
            Some(name) if name != LOG && !vms.contains(name) => {
                bail!("step {number}: no console is called `{name}`: choose log or {}", vms.join(", "))
            }
            Some(name) if name == LOG && matches!(step.action, Action::Send(_)) => {
                bail!("step {number}: nothing can be typed to the log")
            }
            _ => {}
        }
    }
    Ok(())
}

struct Play {
    emulator: Emulator,
    vms: Vec<String>,
    /// The VM that gets what is typed.
    focus: usize,
    under: Under,
    /// When something was typed last, or the machine started.
    typed: Instant,
    deadline: Instant,
    limit: Duration,
    transcript: Transcript,
}

impl Play {
    fn steps(&mut self, scenario: &Scenario, tell: Teller<'_>) -> anyhow::Result<()> {
        for (index, step) in scenario.steps.iter().enumerate() {
            let start = Instant::now();
            let what = describe(step);
            self.step(step).with_context(|| format!("step {} failed: {what}", index + 1))?;
            tell(&format!("  ok {} - {what} ({:.1} s)", index + 1, start.elapsed().as_secs_f32()));
        }
        self.end(scenario.end)?;
        tell(match scenario.end {
            End::Off => "  ok - the machine powered off",
            End::Running => "  ok - the machine was still running",
        });
        Ok(())
    }

    fn step(&mut self, step: &Step) -> anyhow::Result<()> {
        let console = step.console.clone().unwrap_or_else(|| self.vms[0].clone());
        match &step.action {
            Action::Reject(pattern) => {
                self.transcript.reject(&console, pattern.clone());
                self.check_rejected()
            }
            Action::Send(text) => {
                self.bring_into_focus(&console)?;
                // Before, not after: however late we come to our turn again, nothing seems faster than it was.
                self.typed = Instant::now();
                self.emulator.send(text.as_bytes())
            }
            Action::Expect(pattern, times) => {
                while !self.transcript.expect(&console, pattern) {
                    if let Some(ending) = self.listen()? {
                        bail!("the machine ended before ({ending})");
                    }
                }
                check_time(self.typed.elapsed(), times)
            }
        }
    }

    fn bring_into_focus(&mut self, console: &str) -> anyhow::Result<()> {
        let index = self.vms.iter().position(|vm| vm == console).context("the console was checked")?;
        if index == self.focus || self.under == Under::Nothing {
            return Ok(());
        }
        let keys = console::focus_keys(index).context("only the first ten VMs can be typed to")?;
        self.focus = index;
        self.emulator.send(&keys)
    }

    fn end(&mut self, end: End) -> anyhow::Result<()> {
        if end == End::Running {
            return self.expect_running();
        }
        loop {
            match self.listen().context("the machine did not power off")? {
                None => {}
                Some(ending) if ending.is_good() => return Ok(()),
                Some(ending) => bail!("the machine ended, but not well ({ending})"),
            }
        }
    }

    /// Takes what has been printed by now; it must hold no surprise.
    fn expect_running(&mut self) -> anyhow::Result<()> {
        loop {
            match self.emulator.wait(Some(Instant::now()))? {
                Event::Printed(pieces) => {
                    self.transcript.add(pieces);
                    self.check_rejected()?;
                    if Instant::now() >= self.deadline {
                        return Ok(());
                    }
                }
                Event::Ended(ending) => bail!("the machine ended ({ending}), but was to run on"),
                Event::Late => return Ok(()),
            }
        }
    }

    /// Waits for more; gives the status if the machine ended.
    fn listen(&mut self) -> anyhow::Result<Option<Ending>> {
        match self.emulator.wait(Some(self.deadline))? {
            Event::Printed(pieces) => {
                self.transcript.add(pieces);
                self.check_rejected()?;
                Ok(None)
            }
            Event::Ended(ending) => Ok(Some(ending)),
            Event::Late => bail!("not within the limit of {} s", self.limit.as_secs()),
        }
    }

    fn check_rejected(&self) -> anyhow::Result<()> {
        match self.transcript.appeared() {
            None => Ok(()),
            Some(bad) => bail!(
                "console \"{}\" printed what must not appear ('{}'): {}",
                bad.console,
                bad.pattern,
                bad.line
            ),
        }
    }
}

fn check_time(took: Duration, times: &RangeInclusive<Duration>) -> anyhow::Result<()> {
    if times.contains(&took) {
        return Ok(());
    }
    let (wrong, bound) =
        if took < *times.start() { ("at least", times.start()) } else { ("at most", times.end()) };
    bail!(
        "it came {:.2} s after what was typed, not after {wrong} {:.2} s",
        took.as_secs_f64(),
        bound.as_secs_f64()
    )
}

fn describe(step: &Step) -> String {
    let console = step.console.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
    match &step.action {
        Action::Expect(pattern, _) => format!("expect '{pattern}'{console}"),
        Action::Send(text) => format!("send {text:?}{console}"),
        Action::Reject(pattern) => format!("reject '{pattern}'{console}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays steps against a shell script in the emulator's place.
    fn against(script: &str, steps: &str) -> Result<String, String> {
        let scenario = file::parse(&format!("image = \"none\"\nlimit = \"20 s\"\n{steps}")).unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]);
        let vms = vec!["a".to_owned(), "b".to_owned()];
        let mut play = Play {
            emulator: Emulator::start(command, LOG).unwrap(),
            vms,
            focus: 0,
            under: Under::Bulkhead,
            typed: Instant::now(),
            deadline: Instant::now() + scenario.limit,
            limit: scenario.limit,
            transcript: Transcript::default(),
        };
        let mut told = String::new();
        let outcome = play.steps(&scenario, &mut |line| told.push_str(&format!("{line}\n")));
        outcome.map(|()| told).map_err(|error| format!("{error:#}"))
    }

    const TALK: &str =
        "printf 'boot\\n\\036[a] \\037~ # '; read x; printf \"\\036[a] \\037said $x\\n\"; exit 0";

    #[test]
    fn a_dialogue_that_holds_ends_well() {
        let steps = "[[step]]\nconsole = 'log'\nexpect = '^boot$'\n[[step]]\nexpect = '~ # '\n[[step]]\nsend = \"hello\\n\"\n\
            [[step]]\nexpect = 'said hello'\n[end]\nmachine = 'off'";
        let told = against(TALK, steps).unwrap();
        assert_eq!(told.lines().count(), 5);
        assert!(told.contains("ok 3 - send \"hello\\n\""), "{told}");
    }

    #[test]
    fn typing_to_another_console_moves_the_focus_first() {
        let script = "IFS= read -r x; printf '%s' \"$x\" | od -An -tx1";
        let steps = "[[step]]\nconsole = 'b'\nsend = \"z\\n\"\n[[step]]\nconsole = 'log'\nexpect = '01 31 7a'\n[end]\nmachine = 'off'";
        against(script, steps).unwrap();
    }

    #[test]
    fn what_comes_too_early_or_too_late_fails() {
        let script = "read x; sleep 0.2; echo slept; exec cat";
        let steps = |times: &str| {
            format!(
                "[[step]]\nconsole = 'a'\nsend = \"x\\n\"\n[[step]]\nconsole = 'log'\nexpect = 'slept'\n{times}"
            )
        };
        against(script, &steps("at-least = '200 ms'\nat-most = '15 s'")).unwrap();
        let error = against(script, &steps("at-least = '20 s'")).unwrap_err();
        assert!(error.contains("not after at least 20.00 s"), "{error}");
        let error = against(script, &steps("at-most = '199 ms'")).unwrap_err();
        assert!(error.contains("not after at most 0.20 s"), "{error}");
    }

    #[test]
    fn a_machine_that_ends_too_early_fails_the_step() {
        let error = against("echo bye", "[[step]]\nexpect = 'never'").unwrap_err();
        assert!(error.contains("step 1 failed") && error.contains("ended before"), "{error}");
    }

    #[test]
    fn a_bad_status_is_not_a_power_off() {
        let error = against("exit 5", "[end]\nmachine = 'off'").unwrap_err();
        assert!(error.contains("not well") && error.contains('5'), "{error}");
    }

    #[test]
    fn what_is_rejected_fails_at_once() {
        let steps = "[[step]]\nconsole = 'log'\nreject = '^not ok'\n[[step]]\nexpect = 'never'";
        let error = against("echo ok 1; echo not ok 2; exec cat", steps).unwrap_err();
        assert!(error.contains("not ok 2") && error.contains("step 2"), "{error}");
    }

    #[test]
    fn a_machine_that_is_to_run_on_must_not_end() {
        let steps = "[[step]]\nconsole = 'log'\nexpect = 'up'";
        against("echo up; exec cat", steps).unwrap();
    }
}
