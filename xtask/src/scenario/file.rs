//! The scenario format: a machine, a system, and what must appear on which console.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

use crate::boot::Under;
use crate::machine::{Clock, CpuModel, Machine};
use crate::quantity;

/// A scenario, checked.
pub(crate) struct Scenario {
    /// The folder with the system.
    pub(crate) image: PathBuf,
    /// `None`: the default one of the system's architecture.
    pub(crate) machine: Option<Machine>,
    pub(crate) cpu: Option<CpuModel>,
    /// Physical processors; `None`: four, or natively as many as the VM has.
    pub(crate) cpus: Option<u32>,
    /// Physical memory in bytes; `None`: 1 GiB, or natively as much as the VM has.
    pub(crate) ram_bytes: Option<u64>,
    pub(crate) clock: Clock,
    pub(crate) extra: Vec<String>,
    pub(crate) under: Under,
    /// Host time for the whole.
    pub(crate) limit: Duration,
    pub(crate) steps: Vec<Step>,
    pub(crate) end: End,
}

/// One step; `None` as its console means the only VM's.
pub(crate) struct Step {
    pub(crate) console: Option<String>,
    pub(crate) action: Action,
}

pub(crate) enum Action {
    /// Must be printed after what matched last, when so much of the host's time has passed since something was typed.
    Expect(Regex, RangeInclusive<Duration>),
    /// Is typed.
    Send(String),
    /// Must not be printed from here on.
    Reject(Regex),
}

/// What the machine must do after the last step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    /// Power off by itself, with status 0.
    Off,
    /// Still run; it is stopped here.
    #[default]
    Running,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    image: PathBuf,
    machine: Option<String>,
    cpu: Option<String>,
    cpus: Option<u32>,
    ram: Option<String>,
    #[serde(default)]
    emulator_args: Vec<String>,
    #[serde(default)]
    icount: Option<bool>,
    #[serde(default)]
    native: bool,
    #[serde(default = "default_limit")]
    limit: String,
    #[serde(default, rename = "step")]
    steps: Vec<FileStep>,
    #[serde(default)]
    end: FileEnd,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileStep {
    console: Option<String>,
    expect: Option<String>,
    at_least: Option<String>,
    at_most: Option<String>,
    send: Option<String>,
    reject: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEnd {
    machine: End,
}

fn default_limit() -> String {
    "120 s".to_owned()
}

/// Reads a scenario file; the image's path is relative to it.
pub(crate) fn read(path: &Path) -> anyhow::Result<Scenario> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        anyhow!(
            "{}: cannot be read: {error}; name a scenario file, such as those in tests/scenarios",
            path.display()
        )
    })?;
    let mut scenario = parse(&text).with_context(|| format!("in {}", path.display()))?;
    scenario.image = path.parent().unwrap_or(Path::new(".")).join(&scenario.image);
    Ok(scenario)
}

/// Reads a scenario's text.
pub(crate) fn parse(text: &str) -> anyhow::Result<Scenario> {
    let file: File = toml::from_str(text)?;
    if file.cpus == Some(0) {
        bail!("cpus = 0: a machine has at least one");
    }
    let steps = file.steps.into_iter().enumerate();
    Ok(Scenario {
        image: file.image,
        machine: file.machine.map(|machine| machine.parse()).transpose()?,
        cpu: file.cpu.map(|cpu| cpu.parse()).transpose()?,
        cpus: file.cpus,
        ram_bytes: file.ram.map(|ram| quantity::bytes(&ram)).transpose()?,
        clock: match file.icount {
            Some(true) => Clock::Instructions,
            Some(false) => Clock::HostUncounted,
            None => Clock::Host,
        },
        extra: file.emulator_args,
        under: if file.native { Under::Nothing } else { Under::Bulkhead },
        limit: quantity::duration(&file.limit)?,
        steps: steps.map(|(index, step)| parse_step(index, step)).collect::<anyhow::Result<_>>()?,
        end: file.end.machine,
    })
}

fn parse_step(index: usize, step: FileStep) -> anyhow::Result<Step> {
    let console = step.console.clone();
    let action = parse_action(step).with_context(|| format!("step {}", index + 1))?;
    Ok(Step { console, action })
}

fn parse_action(step: FileStep) -> anyhow::Result<Action> {
    let time = |text: Option<String>| text.map(|text| quantity::duration(&text)).transpose();
    let (at_least, at_most) = (time(step.at_least)?, time(step.at_most)?);
    let is_timed = at_least.is_some() || at_most.is_some();
    let times = at_least.unwrap_or(Duration::ZERO)..=at_most.unwrap_or(Duration::MAX);
    match (step.expect, step.send, step.reject) {
        (Some(_), None, None) if times.is_empty() => {
            bail!("`at-least` is more than `at-most`: nothing could take so long")
        }
        (Some(pattern), None, None) => Ok(Action::Expect(regex(&pattern)?, times)),
        (None, _, _) if is_timed => bail!("only `expect` has `at-least` and `at-most`: leave them out"),
        (None, Some(text), None) => Ok(Action::Send(text)),
        (None, None, Some(pattern)) => Ok(Action::Reject(regex(&pattern)?)),
        _ => bail!("a step has exactly one of `expect`, `send` and `reject`"),
    }
}

/// `^` and `$` mean lines, whose ends may be \r\n.
pub(crate) fn regex(pattern: &str) -> anyhow::Result<Regex> {
    if pattern.is_empty() {
        bail!("an empty pattern matches everything: say what is expected");
    }
    Ok(RegexBuilder::new(pattern).multi_line(true).crlf(true).build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"
        image = "../../images/linux-aarch64"
        machine = "qemu-virt-smmu"
        cpu = "max"
        cpus = 4
        ram = "1 GiB"
        emulator-args = ["-device", "edu"]
        icount = false
        limit = "90 s"
        [[step]]
        console = "linux"
        expect = '~ # '
        [[step]]
        send = "uname -r\n"
        [[step]]
        reject = 'Oops|rcu.*stall'
        [end]
        machine = "off"
    "#;

    #[test]
    fn the_sample_of_the_contract_is_understood() {
        let scenario = parse(SAMPLE).unwrap();
        assert_eq!((scenario.machine, scenario.cpu), (Some(Machine::QemuVirtSmmu), Some(CpuModel::Max)));
        assert_eq!((scenario.cpus, scenario.ram_bytes), (Some(4), Some(1 << 30)));
        assert_eq!(scenario.limit.as_secs(), 90);
        assert_eq!((scenario.steps.len(), scenario.end), (3, End::Off));
        assert_eq!(scenario.steps[0].console.as_deref(), Some("linux"));
        assert!(matches!(&scenario.steps[1].action, Action::Send(text) if text == "uname -r\n"));
    }

    #[test]
    fn little_need_be_said() {
        let scenario = parse("image = \"x\"").unwrap();
        assert_eq!((scenario.machine, scenario.cpu), (None, None));
        assert_eq!((scenario.end, scenario.under), (End::Running, Under::Bulkhead));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |text: &str| match parse(&format!("image = \"x\"\n{text}")) {
            Ok(_) => String::new(),
            Err(error) => format!("{error:#}"),
        };
        assert!(error("color = 1").contains("unknown field `color`"));
        assert!(error("machine = \"qemu-q35-svm-vtd\"").contains("comes with the IOMMU drivers"));
        assert!(error("limit = \"soon\"").contains("90 s"));
        assert!(error("cpus = 0").contains("at least one"));
        assert!(error("[[step]]\nexpect = 'a'\nsend = 'b'").contains("step 1"));
        assert!(error("[[step]]\nexpect = '('").contains("step 1"));
        assert!(error("[[step]]\nexpect = ''").contains("empty"));
        assert!(error("[[step]]\nexpect = 'a'\nat-most = '1 h'").contains("step 1: `1 h` is no time"));
        assert!(error("[[step]]\nexpect = 'a'\nat-least = '2 s'\nat-most = '1 s'").contains("more than"));
        assert!(error("[[step]]\nsend = 'a'\nat-least = '2 s'").contains("only `expect`"));
        assert!(error("[end]\nmachine = \"maybe\"").contains("maybe"));
    }

    #[test]
    fn what_is_expected_may_have_its_times() {
        let text = "image = 'x'\n[[step]]\nexpect = 'a'\nat-least = '4500 ms'\n[[step]]\nexpect = 'b'\nat-most = '1 min'";
        let times: Vec<_> = parse(text).unwrap().steps.into_iter().map(|step| step.action).collect();
        let [Action::Expect(_, first), Action::Expect(_, second)] = times.as_slice() else { unreachable!() };
        assert_eq!(*first, Duration::from_millis(4500)..=Duration::MAX);
        assert_eq!(*second, Duration::ZERO..=Duration::from_secs(60));
    }

    #[test]
    fn a_path_is_relative_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        std::fs::write(&path, SAMPLE).unwrap();
        assert_eq!(read(&path).unwrap().image, folder.path().join("../../images/linux-aarch64"));
        let error = read(Path::new("missing.toml")).err().unwrap().to_string();
        assert!(error.starts_with("missing.toml: cannot be read: No such file"), "{error}");
    }
}
