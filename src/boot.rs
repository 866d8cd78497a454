//! From what a loader hands over to running compartments.

use crate::arch::{Arch, CpuId, CpuMain, Files, RamRange, Ticks, Unsupported};
use crate::config::archive::{ArchiveError, verify};
use crate::config::{self};
use crate::console::Console;
use crate::memory::frames::FramePool;
use crate::memory::guest_ram::GuestRam;
use crate::memory::place::{DoesNotFit, Pieces, lay, place};
use crate::memory::table::{MapError, Perm, Stage2};
use crate::memory::{Claim, HostMemory};
use crate::sched::MAX_SHARED;
use crate::turn::Turn;
use crate::vcpu::Cpu;
use crate::vm::{Home, Parts, Vm, files};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_vdev::Gpa;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

/// What a loader handed over and the back end found, in one struct.
pub struct Boot {
    /// The machine's RAM, with what is used already.
    pub memory: HostMemory,
    /// Frames for second stages.
    pub frames: FramePool,
    /// The system archive, wherever it lies.
    pub archive: &'static [u8],
    /// How many CPUs the machine has.
    pub cpus: u32,
    /// Nanoseconds between 1970 and the moment when the counter was 0.
    pub epoch_ns: u64,
    /// What the counter showed when the loader entered us.
    pub entered: Ticks,
    /// The consoles; the log goes there already.
    pub console: &'static Console,
    /// The hypervisor's own memory: image, stacks, tables, heap.
    pub resident_bytes: u64,
    /// Called on the boot CPU when nothing will be allocated any more.
    pub sealed: fn(),
}

/// Why nothing was booted: one line each.
#[derive(Debug)]
pub enum BootError {
    /// The archive.
    Archive(ArchiveError),
    /// The system is for another architecture.
    Architecture(config::Architecture),
    /// A VM names a CPU that the machine lacks.
    NoSuchCpu {
        /// The VM.
        vm: usize,
        /// The CPU.
        cpu: u32,
        /// How many there are.
        cpus: u32,
    },
    /// More vCPUs share a CPU than it can serve.
    CpuFull {
        /// The CPU.
        cpu: u32,
        /// How many vCPUs it would have to serve.
        vcpus: usize,
    },
    /// The machine's RAM.
    DoesNotFit(DoesNotFit),
    /// The hypervisor's own memory.
    NoFrames,
    /// A VM's payload.
    Payload {
        /// The VM.
        vm: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The machine.
    Machine(Unsupported),
}

impl BootError {
    fn payload(vm: usize, why: &str) -> Self {
        Self::Payload { vm, why: why.into() }
    }
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive(error) => write!(f, "{error}"),
            Self::Architecture(other) => {
                write!(f, "the system is for {other}, this machine is not: pack it with the right `arch`")
            }
            Self::NoSuchCpu { vm, cpu, cpus } => write!(
                f,
                "vm {vm} wants CPU {cpu}, but the machine has {cpus}: name CPUs below {cpus} in `cpus`, or use a larger machine"
            ),
            Self::CpuFull { cpu, vcpus } => write!(
                f,
                "CPU {cpu} would have to serve {vcpus} vCPUs, but {MAX_SHARED} is the most: spread them by `cpus`, or use a larger machine"
            ),
            Self::DoesNotFit(error) => write!(f, "{error}"),
            Self::NoFrames => {
                f.write_str("the pool of frames for translation tables is empty: use fewer or smaller VMs")
            }
            Self::Payload { vm, why } => write!(f, "vm {vm} cannot boot: {why}"),
            Self::Machine(error) => write!(f, "{error}"),
        }
    }
}

/// Everything that runs, shared by all CPUs for as long as the machine is on.
pub struct Hypervisor<A: Arch> {
    /// The compartments.
    pub vms: Vec<Box<Vm<A>>>,
    /// The consoles.
    pub console: &'static Console,
    /// Whose turn it is on each CPU.
    turns: &'static [Turn],
    /// CPUs that have allocated what they need.
    ready: AtomicU32,
    cpus: u32,
    sealed: fn(),
}

impl<A: Arch> Hypervisor<A> {
    /// Makes compartments of what was handed over. Nothing runs yet.
    ///
    /// # Errors
    /// [`BootError`]: then nothing was started.
    pub fn new(arch: &A, mut boot: Boot) -> Result<Self, BootError> {
        let began = arch.now();
        let archive = verify(boot.archive).map_err(BootError::Archive)?;
        let verifying = arch.now().0.saturating_sub(began.0);
        let archive = archive.open().map_err(BootError::Archive)?;
        let system = archive.system().clone();
        if system.arch != A::ARCHITECTURE {
            return Err(BootError::Architecture(system.arch));
        }
        let wanted: Vec<u64> = system.vms.iter().map(|vm| vm.ram_bytes).collect();
        let placed =
            place(&wanted, boot.memory.banks(), boot.memory.taken()).map_err(BootError::DoesNotFit)?;
        let turns: &'static [Turn] = Box::leak((0..boot.cpus).map(|_| Turn::new()).collect());
        let mut vms = Vec::new();
        let mut deal = 0;
        for (index, (config, ranges)) in system.vms.into_iter().zip(placed).enumerate() {
            let cpus = deal_cpus(index, &config, boot.cpus, &mut deal)?;
            let homes = cpus.into_iter().map(|cpu| Home { cpu, turn: &turns[cpu.0 as usize] }).collect();
            let files = files(&config, |id| archive.file(id))
                .ok_or_else(|| BootError::payload(index, "its files are not in the archive"))?;
            let parts = Self::parts(arch, &mut boot, index, config, files, ranges, homes)?;
            vms.push(Self::vm(arch, Parts { verifying, ..parts })?);
        }
        let Boot { console, cpus, sealed, .. } = boot;
        check_shares(&vms, cpus)?;
        Ok(Self { vms, console, turns, ready: AtomicU32::new(0), cpus, sealed })
    }

    /// What one VM is made of: RAM that is its own from now on, the space it is mapped in, and its board.
    #[inline(never)]
    fn parts(
        arch: &A,
        boot: &mut Boot,
        index: usize,
        config: config::Vm,
        files: Files,
        ranges: Pieces,
        homes: Vec<Home>,
    ) -> Result<Parts<A>, BootError> {
        let mut claims = |layout: &[RamRange]| {
            let claim = |(at, range)| boot.memory.claim(range).map(|claim| (at, claim));
            let claims: Result<Vec<(Gpa, Claim)>, _> = lay(layout, &ranges).into_iter().map(claim).collect();
            // `place` was shown what is taken; a claim that fails all the same must not become a VM.
            claims.map_err(|_| BootError::payload(index, "its RAM was given away"))
        };
        let ram = GuestRam::new(claims(&A::ram(config.ram_bytes))?);
        let hidden = claims(A::HIDDEN.as_slice())?;
        let all = ram.parts().chain(hidden.iter().map(|(at, claim)| (*at, claim)));
        let space = Self::address_space(arch, &mut boot.frames, all).map_err(|error| match error {
            MapError::NoFrames => BootError::NoFrames,
            MapError::Occupied | MapError::BadAddress => BootError::payload(
                index,
                "its RAM ends behind the last address that the machine can translate: give it less",
            ),
        })?;
        let board = arch.board(index, &config, files).map_err(|why| BootError::Payload { vm: index, why })?;
        boot.console.add(&config.name);
        Ok(Parts {
            index,
            config,
            space,
            ram,
            board,
            homes,
            console: boot.console,
            epoch_ns: boot.epoch_ns,
            entered: boot.entered,
            verifying: 0,
        })
    }

    /// One VM, on the heap: it is too large to be handed around on a stack.
    #[inline(never)]
    fn vm(arch: &A, parts: Parts<A>) -> Result<Box<Vm<A>>, BootError> {
        let index = parts.index;
        Vm::new(arch, parts).map(Box::new).map_err(|why| BootError::payload(index, why))
    }

    fn address_space<'m>(
        arch: &A,
        frames: &mut FramePool,
        memory: impl Iterator<Item = (Gpa, &'m Claim)>,
    ) -> Result<Stage2<A::Format>, MapError> {
        let space = Stage2::new(frames, arch.address_bits(), arch.largest_leaf());
        let space = space.ok_or(MapError::NoFrames)?;
        for (at, claim) in memory {
            space.map(frames, at, claim, Perm::RAM)?;
        }
        Ok(space)
    }

    /// Whose turn it is on CPU `id`.
    ///
    /// # Panics
    /// If there is no such CPU.
    #[must_use]
    pub fn turn(&self, id: CpuId) -> &'static Turn {
        &self.turns[id.0 as usize]
    }

    /// What CPU `id` does for as long as the machine is on.
    pub fn run_cpu(&'static self, arch: A, id: CpuId) -> ! {
        let cpu = Box::leak(Box::new(Cpu::new(arch, id, self)));
        if self.ready.fetch_add(1, Ordering::SeqCst) + 1 == self.cpus {
            (self.sealed)();
            (0..self.cpus).for_each(|other| cpu.arch().kick(CpuId(other)));
        }
        // All CPUs are up before any guest runs: a start that fails is then still a boot error.
        while self.ready.load(Ordering::SeqCst) < self.cpus {
            cpu.arch().idle();
        }
        A::keep_running(cpu)
    }
}

/// The physical CPU of each of the VM's vCPUs: those it names, in turn; else all of the machine, in turn over all VMs.
fn deal_cpus(vm: usize, config: &config::Vm, cpus: u32, deal: &mut u32) -> Result<Vec<CpuId>, BootError> {
    if let Some(cpu) = config.cpus.iter().copied().find(|cpu| *cpu >= cpus) {
        return Err(BootError::NoSuchCpu { vm, cpu, cpus });
    }
    let mut dealt = Vec::new();
    for vcpu in 0..config.vcpus as usize {
        let cpu = if config.cpus.is_empty() {
            *deal += 1;
            (*deal - 1) % cpus
        } else {
            config.cpus[vcpu % config.cpus.len()]
        };
        dealt.push(CpuId(cpu));
    }
    Ok(dealt)
}

/// Refuses a CPU that more vCPUs share than a decision can choose from: the others would never run.
fn check_shares<A: Arch>(vms: &[Box<Vm<A>>], cpus: u32) -> Result<(), BootError> {
    for cpu in 0..cpus {
        let vcpus = vms.iter().flat_map(|vm| vm.cpus()).filter(|other| other.0 == cpu).count();
        if vcpus > MAX_SHARED {
            return Err(BootError::CpuFull { cpu, vcpus });
        }
    }
    Ok(())
}

/// The whole system, on the CPU that came up first. Returns only why nothing was booted.
pub fn main<A: Arch>(arch: A, boot: Boot) -> BootError {
    let resident = boot.resident_bytes;
    let archive = boot.archive.len();
    let cpus = boot.cpus;
    let hypervisor = match Hypervisor::new(&arch, boot) {
        Ok(hypervisor) => hypervisor,
        Err(error) => return error,
    };
    let hypervisor: &'static Hypervisor<A> = Box::leak(Box::new(hypervisor));
    log::info!(
        "{cpus} CPUs, {} VMs; {} KiB resident besides guest RAM, and the system archive of {} KiB",
        hypervisor.vms.len(),
        resident / 1024,
        archive / 1024
    );
    for vm in &hypervisor.vms {
        let cpus: Vec<u32> = vm.cpus().map(|cpu| cpu.0).collect();
        log::info!("{}: {} MiB, vCPUs on CPUs {cpus:?}", vm.config.name, vm.config.ram_bytes >> 20);
    }
    let main: Box<CpuMain<A>> = Box::new(|arch, cpu| hypervisor.run_cpu(arch, cpu));
    let main: &'static CpuMain<A> = Box::leak(main);
    for cpu in (1..cpus).map(CpuId) {
        if let Err(error) = arch.start_cpu(cpu, main) {
            return BootError::Machine(error);
        }
    }
    hypervisor.run_cpu(arch, CpuId(0))
}
