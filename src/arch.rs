//! The seam: what a CPU back end offers to the core.
//!
//! One value of [`Arch`] stands for one physical CPU. What crosses is decoded: the core never sees an exit
//! reason, a syndrome or a control block, and a back end never sees a configuration file or a schedule.

use crate::config;
use crate::memory::Hpa;
use crate::memory::table::{Format, Stage2};
use crate::vcpu::Cpu;
use crate::vm::Vm;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_vdev::{Access, Device, Gpa, IrqLines, VcpuSet};
use core::fmt;

/// A physical CPU: its place in the machine's list, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct CpuId(pub u32);

/// A virtual CPU of one VM, from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuId(pub usize);

/// A moment on the host's counter, which never goes back and is the same on all CPUs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Ticks(pub u64);

/// Where a vCPU starts: its first instruction and what its argument registers hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// The first instruction.
    pub pc: Gpa,
    /// The argument registers; what is not named is 0.
    pub arguments: [u64; 4],
    /// Which of the CPU's start states it is in, as the back end numbers them; 0 is the one after power-on.
    pub state: u32,
}

/// Why a guest's CPU came back.
#[derive(Debug)]
pub enum Exit {
    /// An access that no RAM answered; [`Arch::complete`] or [`Arch::refuse`] answers.
    Io(Place, Access),
    /// A call to the hypervisor's own services; [`Arch::reply`] answers.
    Hypercall(u64, [u64; 4]),
    /// The guest starts others of its CPUs; [`Arch::started`] answers.
    Start(VcpuSet, Entry),
    /// The guest switches others of its CPUs off, whatever they do; nothing answers.
    SwitchOff(VcpuSet),
    /// Nothing to do until an interrupt comes.
    Idle,
    /// A host interrupt, a deadline or a kick.
    Preempted,
    /// This vCPU, or its VM, does not go on.
    Stopped(Stop),
}

/// What an access names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Guest-physical memory.
    Memory(Gpa),
    /// An I/O port.
    Port(u16),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(at) => write!(f, "address {at}"),
            Self::Port(port) => write!(f, "port {port:#x}"),
        }
    }
}

/// Why a vCPU or its VM stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The guest switched off this vCPU.
    CpuOff,
    /// The guest switched off its machine.
    PowerOff,
    /// The guest reset its machine.
    Reset,
    /// The guest did what its machine cannot do.
    Fault(Fault),
}

/// What a guest did that ends it: one sentence, and the place if there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The cause, a sentence without its full stop.
    pub cause: &'static str,
    /// The place that the guest named.
    pub at: Option<Place>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cause)?;
        match self.at {
            Some(at) => write!(f, ", at {at}"),
            None => Ok(()),
        }
    }
}

/// Why the machine cannot do what the hypervisor needs: the machine's fault, said in one line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unsupported(pub &'static str);

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Why a vCPU was not started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartError {
    /// It runs already.
    AlreadyOn,
    /// The VM has no such vCPU.
    NoSuchVcpu,
}

/// A guest's machine: what [`Arch::board`] makes of one VM's configuration.
pub struct Board {
    /// The devices.
    pub devices: Vec<Wired>,
    /// Where the devices answer.
    pub windows: Vec<Window>,
    /// What a start copies into RAM, in this order.
    pub segments: Vec<Segment>,
    /// Where the first vCPU starts.
    pub entry: Entry,
}

/// A device and how it is wired.
pub struct Wired {
    /// The model.
    pub device: Box<dyn Device>,
    /// The interrupt controller's number for the device's wire, if it has one.
    pub line: Option<u32>,
}

/// A range of memory or of ports in which a device answers. A device may have several.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// The first byte, or the first port.
    pub base: Place,
    /// In bytes, or ports.
    pub len: u64,
    /// Which of the board's devices.
    pub device: usize,
    /// What the device calls the first byte.
    pub offset: u64,
}

/// A range of a guest's RAM. What lies behind is one line of memory, of which a guest's address space shows parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamRange {
    /// Where the guest finds it.
    pub at: Gpa,
    /// Where it begins in the line.
    pub offset: u64,
    /// In bytes, a multiple of a page.
    pub bytes: u64,
}

/// Bytes that a start copies into the guest's RAM.
pub struct Segment {
    /// Where the first byte goes.
    pub to: Gpa,
    /// The bytes; they outlive every restart.
    pub bytes: &'static [u8],
}

/// The files that a VM boots from, out of the archive.
#[derive(Clone, Copy)]
pub struct Files {
    /// The kernel.
    pub kernel: &'static [u8],
    /// The initial RAM disk.
    pub initrd: Option<&'static [u8]>,
}

/// What runs on a physical CPU once it is up.
pub type CpuMain<A> = dyn Fn(A, CpuId) -> core::convert::Infallible + Sync;

/// A CPU with its virtualisation extension switched on. Not `Send`: it is the CPU it was made on.
///
/// # Safety
/// A guest reaches only host memory mapped in the `Stage2` its vCPU was made with, and `run` returns
/// with the host's state intact, whatever the guest did.
#[expect(unsafe_code, reason = "an implementation makes a promise that no compiler checks")]
pub unsafe trait Arch: Sized + 'static {
    /// The entries of the second-stage tables.
    type Format: Format;
    /// One vCPU's registers. It belongs to the physical CPU that made it.
    type Vcpu;
    /// One VM's interrupt controller.
    type Irqs: IrqLines;

    /// What guests of this architecture are called in a configuration.
    const ARCHITECTURE: config::Architecture;
    /// Whether guests have I/O ports besides memory: [`Place::Port`].
    const HAS_PORTS: bool = false;
    /// Where a guest with so many bytes of RAM finds it, lowest address first.
    fn ram(bytes: u64) -> Vec<RamRange>;
    /// Memory that is only mapped for the guest's CPU, which makes something else of it: no device and no copy finds it.
    const HIDDEN: Option<RamRange> = None;

    /// Starts another physical CPU, which then calls `main`.
    ///
    /// # Errors
    /// [`Unsupported`] if the machine refuses.
    fn start_cpu(&self, cpu: CpuId, main: &'static CpuMain<Self>) -> Result<(), Unsupported>;

    /// The guest machine for VM number `index`.
    ///
    /// # Errors
    /// One line that says why the payload cannot boot on it.
    fn board(&self, index: usize, vm: &config::Vm, files: Files) -> Result<Board, String>;

    /// The interrupt controller of one VM.
    fn irqs(&self, vm: &config::Vm) -> Self::Irqs;

    /// How many bits a guest-physical address has on this machine.
    fn address_bits(&self) -> u32;

    /// The highest level at which this machine's second stages may have leaves.
    fn largest_leaf(&self) -> u32 {
        Self::Format::LARGEST_LEAF
    }

    /// Registers of the vCPU `id` of `vm`. `shared` says that other vCPUs run on this physical CPU too, so that waiting has
    /// to come back as [`Exit::Idle`].
    fn vcpu(&self, vm: &Vm<Self>, id: VcpuId, shared: bool) -> Self::Vcpu;

    /// Puts `vcpu` into the state after power-on, about to execute `entry`. It is not loaded.
    fn reset(&self, vcpu: &mut Self::Vcpu, entry: Entry);

    /// Makes `vcpu` the one whose registers the CPU holds. None was loaded.
    fn load(&self, vcpu: &mut Self::Vcpu, vm: &Vm<Self>);

    /// Takes the registers of the loaded `vcpu` out of the CPU.
    fn unload(&self, vcpu: &mut Self::Vcpu, vm: &Vm<Self>);

    /// Forgets the loaded `vcpu` for good, with all that the CPU holds of it, and asks nothing of its VM, which has ended. It may
    /// be loaded by half, or not any more: that failed on the way.
    fn abandon(&self, vcpu: &mut Self::Vcpu);

    /// Runs the loaded `vcpu` until something is not the back end's own.
    fn run(&self, vcpu: &mut Self::Vcpu, vm: &Vm<Self>) -> Exit;

    /// Answers [`Exit::Io`]: a read's value goes to its register, the instruction is done.
    fn complete(&self, vcpu: &mut Self::Vcpu, value: u64);

    /// Answers [`Exit::Io`] as the machine does where nothing is.
    fn refuse(&self, vcpu: &mut Self::Vcpu);

    /// Answers [`Exit::Hypercall`].
    fn reply(&self, vcpu: &mut Self::Vcpu, result: u64);

    /// Answers [`Exit::Start`], once for each vCPU of the set.
    fn started(&self, vcpu: &mut Self::Vcpu, result: Result<(), StartError>);

    /// When an unloaded `vcpu` that waits wants to run again by its own timers.
    fn alarm(&self, vcpu: &Self::Vcpu) -> Option<Ticks>;

    /// Whether the loaded `vcpu` can never make progress by itself again (it faults on its own fault handler).
    fn is_stuck(&self, vcpu: &Self::Vcpu) -> bool;

    /// Forgets cached translations of `space` on all CPUs, before it returns.
    fn invalidate(&self, vm: usize, space: &Stage2<Self::Format>);

    /// Makes `bytes` that were written to host memory at `at` what a guest sees that starts with its caches off.
    fn publish(&self, at: Hpa, bytes: usize);

    /// Makes `cpu` return [`Exit::Preempted`], or leave [`Arch::idle`], soon.
    fn kick(&self, cpu: CpuId);

    /// Makes `cpu` look at [`Vm::take_attention`] of the vCPU it runs, soon.
    fn nudge(&self, cpu: CpuId);

    /// The counter.
    fn now(&self) -> Ticks;

    /// How often the counter ticks.
    fn ticks_per_second(&self) -> u64;

    /// The only deadline: at `at` this CPU returns [`Exit::Preempted`] or leaves [`Arch::idle`].
    fn wake_at(&self, at: Option<Ticks>);

    /// Waits for an interrupt, a deadline or a kick.
    fn idle(&self);

    /// Writes the state of the loaded `vcpu` for a fault report: at most a screen.
    ///
    /// # Errors
    /// What `out` says.
    fn describe(&self, vcpu: &Self::Vcpu, out: &mut dyn fmt::Write) -> fmt::Result;

    /// Calls [`Cpu::run`] on this CPU, for ever: after a panic or [`Arch::give_up`] with the stack as empty as before, once
    /// [`Cpu::recover`] has said that there is something to go on with.
    fn keep_running(cpu: &'static mut Cpu<Self>) -> !;

    /// Leaves what this CPU is doing, as after a panic that somebody else has reported.
    fn give_up(&self) -> !;

    /// Switches the machine off.
    fn power_off(&self) -> !;
}
