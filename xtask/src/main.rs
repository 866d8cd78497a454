//! Bulkhead's tool, for integrators and developers alike: `cargo xtask help` lists what it does.
//!
//! It relies on Cargo, on Debian's apt-get for what a machine lacks, and on QEMU and Bochs to boot. Whatever it builds or fetches lies in
//! Cargo's target folder; it changes nothing else, but for the packages that `setup` installs.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use bulkhead::config::Architecture;
use clap::{Args, Parser, Subcommand, ValueEnum};

use machine::{Clock, CpuModel, Machine, Settings};

mod apt;
mod bench;
mod boot;
mod build;
mod ci;
mod command;
mod compare;
mod console;
mod damage;
mod elf;
mod flatten;
mod frames;
mod grub;
mod initramfs;
mod lint;
mod machine;
mod pack;
mod payload;
mod problem;
mod progress;
mod quantity;
mod run;
mod scenario;
mod schema;
mod setup;
mod size;
mod source;
mod system;
mod test;
mod undo;
mod workspace;

/// Builds, checks, boots and measures Bulkhead.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what this machine lacks
    Setup,
    /// Boot a system with its consoles on this terminal (Ctrl-A x ends it)
    Run {
        /// A name under images/, or a folder with a system.toml; Debian's Linux, if not given
        image: Option<String>,
        /// The architecture; this computer's own, if nothing else tells it
        #[arg(long, value_name = "A")]
        arch: Option<ArchOption>,
        #[command(flatten)]
        machine: MachineOptions,
    },
    /// Boot by script; succeeds only if every step held
    Scenario {
        /// Scenario files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Keep what every console printed in this folder
        #[arg(long, value_name = "DIR")]
        log: Option<PathBuf>,
    },
    /// Check a system without booting it
    Check {
        /// A name under images/, or a folder with a system.toml
        #[arg(required_unless_present = "schema")]
        image: Option<String>,
        /// Print the JSON schema of system.toml for editors
        #[arg(long)]
        schema: bool,
    },
    /// Write the bootable files for a real machine
    Pack {
        /// A name under images/, or a folder with a system.toml
        image: String,
        /// Where to write them
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Run all tests: host, test guests, scenarios
    Test {
        /// Only the tests that need no emulator
        #[arg(long)]
        fast: bool,
    },
    /// Count the instructions of each operation and compare with other hypervisors
    Bench {
        /// The machine: qemu-virt, qemu-virt-smmu, qemu-q35-svm or bochs-vmx
        #[arg(long, default_value = "qemu-virt", value_name = "M")]
        machine: Machine,
        /// Only this processor of an Arm machine: cortex-a57 or max
        #[arg(long)]
        cpu: Option<CpuModel>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Everything that a change must pass: format, lints, tests
    Ci,
    /// Count code lines, unsafe blocks and bytes
    Size,
}

#[derive(Args)]
struct MachineOptions {
    /// The machine: qemu-virt, qemu-virt-smmu, qemu-q35-svm, qemu-q35-kvm or bochs-vmx; chosen by the architecture, if not
    /// given, and nested where this computer's KVM offers that
    #[arg(long, value_name = "M")]
    machine: Option<Machine>,
    /// The processor: cortex-a57 (without VHE) or max (with everything) of an Arm machine, skylake-x (with a virtual APIC) or
    /// sandy-bridge (without) of bochs-vmx
    #[arg(long)]
    cpu: Option<CpuModel>,
    /// How many processors
    #[arg(long, default_value_t = scenario::DEFAULT_CPUS, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// How much memory, such as "1 GiB"
    #[arg(long, default_value = "1 GiB", value_name = "S", value_parser = quantity::bytes)]
    ram: u64,
    /// Let the clock count instructions, so that every run is the same
    #[arg(long)]
    icount: bool,
}

/// A processor architecture by the name that Rust and system.toml have for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum ArchOption {
    #[value(name = "aarch64")]
    Aarch64,
    #[value(name = "x86_64")]
    X86_64,
}

impl From<ArchOption> for Architecture {
    fn from(option: ArchOption) -> Self {
        match option {
            ArchOption::Aarch64 => Self::Aarch64,
            ArchOption::X86_64 => Self::X86_64,
        }
    }
}

impl MachineOptions {
    fn settings(&self, architecture: Architecture) -> Settings {
        let clock = if self.icount { Clock::Instructions } else { Clock::Host };
        Settings {
            machine: self.machine.unwrap_or_else(|| Machine::default_for(architecture, clock)),
            cpu: self.cpu,
            cpus: self.cpus,
            ram_bytes: self.ram,
            clock,
            extra: Vec::new(),
        }
    }

    /// The image to boot where none is named: that of the architecture asked for, of the machine asked for, or of this
    /// computer.
    fn default_image(&self, arch: Option<ArchOption>) -> &'static str {
        let machine = self.machine.map(Machine::architecture);
        match arch.map(Architecture::from).or(machine).unwrap_or_else(own_architecture) {
            Architecture::Aarch64 => "linux-aarch64",
            Architecture::X86_64 => "linux-x86_64",
        }
    }
}

/// This computer's own architecture; Arm if Bulkhead does not know it.
fn own_architecture() -> Architecture {
    if std::env::consts::ARCH == "x86_64" { Architecture::X86_64 } else { Architecture::Aarch64 }
}

fn main() -> ExitCode {
    let task = Line::parse().task;
    match undo::before_signals().and_then(|()| perform(task)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Setup => setup::run()?,
        Task::Run { image, arch, machine } => return run(image.as_deref(), arch, &machine),
        Task::Scenario { files, log } => scenario::run(&files, log.as_deref())?,
        Task::Check { image, schema } => check(image.as_deref(), schema)?,
        Task::Pack { image, output } => {
            let loaded = system::load(&boot::image_folder(&image)?).map_err(|error| anyhow!("{error}"))?;
            pack::pack(&loaded, &build::hypervisor(loaded.system.arch)?, &output)?;
        }
        Task::Test { fast } => test::run(fast)?,
        Task::Bench { machine, cpu, json } => bench::run(machine, cpu, json)?,
        Task::Ci => ci::run()?,
        Task::Size => size::run()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run(image: Option<&str>, arch: Option<ArchOption>, options: &MachineOptions) -> anyhow::Result<ExitCode> {
    let wanted = arch.map(Architecture::from);
    let name = image.unwrap_or_else(|| options.default_image(arch));
    run::run(name, |architecture| match wanted {
        Some(wanted) if wanted != architecture => {
            bail!("{name} is a system for {architecture}: leave out `--arch {wanted}`")
        }
        _ => Ok(options.settings(architecture)),
    })
}

fn check(image: Option<&str>, schema: bool) -> anyhow::Result<()> {
    if schema {
        println!("{}", schema::text());
    }
    match image {
        Some(image) => system::check(&boot::image_folder(image)?).map_err(|error| anyhow!("{error}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> (Option<String>, Option<ArchOption>, MachineOptions) {
        let line = Line::parse_from(["xtask", "run"].iter().chain(words));
        let Task::Run { image, arch, machine } = line.task else { unreachable!("the words say so") };
        (image, arch, machine)
    }

    #[test]
    fn the_default_image_is_of_the_architecture_the_machine_or_this_computer() {
        let image = |words: &[&str]| {
            let (_, arch, options) = options(words);
            options.default_image(arch)
        };
        assert_eq!(image(&["--arch", "aarch64"]), "linux-aarch64");
        assert_eq!(image(&["--arch", "x86_64"]), "linux-x86_64");
        assert_eq!(image(&["--machine", "bochs-vmx"]), "linux-x86_64");
        assert_eq!(image(&["--machine", "qemu-virt"]), "linux-aarch64");
        assert_eq!(image(&[]), format!("linux-{}", std::env::consts::ARCH));
    }

    #[test]
    fn a_machine_is_dressed_as_the_line_says() {
        let (image, _, options) = options(&["own", "--cpus", "2", "--ram", "512M", "--icount"]);
        let settings = options.settings(Architecture::X86_64);
        assert_eq!(image.as_deref(), Some("own"));
        assert_eq!((settings.machine, settings.cpus), (Machine::QemuQ35Svm, 2));
        assert_eq!((settings.ram_bytes, settings.clock), (512 << 20, Clock::Instructions));
    }
}
