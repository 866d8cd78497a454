//! A whole system on the fake machine: packed, booted, and stepped in the order that a test wants.

use super::guests::Guest;
use super::machine::{Machine, PoweredOff, Reply};
use super::{Fake, contain};
use bulkhead::arch::{CpuId, Ticks, VcpuId};
use bulkhead::boot::{Boot, BootError, Hypervisor};
use bulkhead::config::archive::write;
use bulkhead::config::{
    Architecture, FileId, Kernel, KernelFormat, OnFault, System, Unmapped, Vm as VmConfig,
};
use bulkhead::console::{Console, Uart};
use bulkhead::memory::frames::{Frame, FramePool};
use bulkhead::memory::{HostMemory, PAGE};
use bulkhead::vcpu::Cpu;
use bulkhead::vm::{Phase, Vm};
use bulkhead_vdev::{Gpa, virt};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, Once, PoisonError};

/// A system to be.
pub(crate) struct Plan {
    pub(crate) machine: Machine,
    pub(crate) cpus: u32,
    pub(crate) arch: Architecture,
    pub(crate) vms: Vec<Planned>,
    pub(crate) frames: usize,
    /// Parts of the host's RAM, from its start, that are used already.
    pub(crate) used: Vec<Range<u64>>,
    pub(crate) harm: fn(&mut Vec<u8>),
}

pub(crate) struct Planned {
    pub(crate) config: VmConfig,
    pub(crate) kernel: Vec<u8>,
    guests: Vec<Guest>,
}

/// The host's RAM: enough for a few VMs of [`RAM`] each, wherever granules begin.
const HOST_RAM: usize = 24 << 20;
/// A guest's RAM: the least with room for a kernel.
pub(crate) const RAM: u64 = 4 << 20;
/// More steps than any test needs.
const PATIENCE: usize = 20_000;

impl Plan {
    pub(crate) fn new(cpus: u32) -> Self {
        Self {
            machine: Machine::new(),
            cpus,
            arch: Architecture::Aarch64,
            vms: Vec::new(),
            frames: 64,
            used: Vec::new(),
            harm: |_| (),
        }
    }

    /// Adds a VM with one vCPU for each of `guests`.
    pub(crate) fn vm(mut self, name: &str, cpus: &[u32], guests: Vec<Guest>) -> Self {
        let file = FileId(u32::try_from(self.vms.len()).unwrap());
        let config = VmConfig {
            name: name.into(),
            vcpus: u32::try_from(guests.len()).unwrap(),
            cpus: cpus.to_vec(),
            ram_bytes: RAM,
            kernel: Kernel {
                format: KernelFormat::Flat { load: virt::RAM.0 + PAGE, entry: virt::RAM.0 + PAGE + 8 },
                file,
                initrd: None,
                cmdline: String::new(),
            },
            on_fault: OnFault::Stop,
            unmapped: Unmapped::AsHardware,
            hypervisor_leaf: false,
            privileges: vec![],
        };
        let kernel = format!("the kernel of {name}").into_bytes();
        self.vms.push(Planned { config, kernel, guests });
        self
    }

    /// Changes the VM added last.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Planned)) -> Self {
        change(self.vms.last_mut().unwrap());
        self
    }

    /// What a loader would hand over, and a rig without a system.
    fn hand_over(mut self) -> (Boot, Handed) {
        let vms = self.vms.iter().map(|vm| vm.config.clone()).collect();
        let files: Vec<_> =
            self.vms.iter().map(|vm| (vm.config.name.as_str(), vm.kernel.as_slice())).collect();
        let mut archive = write(&System { arch: self.arch, vms }, &files);
        (self.harm)(&mut archive);
        for (vm, planned) in self.vms.iter_mut().enumerate() {
            for (vcpu, guest) in planned.guests.drain(..).enumerate() {
                self.machine.with(|state| state.guest((vm, vcpu)).program = Some(guest));
            }
        }
        let host = Box::leak(vec![0; HOST_RAM].into_boxed_slice());
        let start = (host.as_mut_ptr().expose_provenance() as u64).next_multiple_of(PAGE);
        let host = start..start + HOST_RAM as u64 - PAGE;
        let used: Vec<_> = self.used.iter().map(|used| start + used.start..start + used.end).collect();
        #[expect(unsafe_code, reason = "it stands for the loader's word")]
        // SAFETY: the bytes are leaked, so they stay, and nobody but their claims' owners reaches them.
        let memory = unsafe { HostMemory::new(vec![host.clone()], used.clone()) };
        let frames: Vec<Frame> = (0..self.frames).map(|_| Frame::EMPTY).collect();
        let frames: &'static [Frame] = Box::leak(frames.into_boxed_slice());
        let console = Box::leak(Box::new(Console::new()));
        let screen = Screen::default();
        console.attach(Box::new(screen.clone()));
        let boot = Boot {
            memory,
            frames: FramePool::new(frames),
            archive: Box::leak(archive.into_boxed_slice()),
            cpus: self.cpus,
            epoch_ns: 1_000_000_000,
            entered: Ticks(0),
            console,
            resident_bytes: 0,
            sealed: || (),
        };
        let machine: &'static Machine = Box::leak(Box::new(self.machine));
        (boot, Handed { machine, screen, host, used, frames })
    }

    /// Boots with `main`, each CPU a thread, until the machine is switched off, or says why it does not boot.
    pub(crate) fn run_in_threads(mut self) -> (Handed, Option<BootError>) {
        self.machine.threads = true;
        let (boot, handed) = self.hand_over();
        let arch = Fake { machine: handed.machine, cpu: CpuId(0) };
        let end = catch_unwind(AssertUnwindSafe(|| bulkhead::main(arch, boot)));
        match end {
            Ok(error) => (handed, Some(error)),
            Err(reason) if reason.is::<PoweredOff>() => {
                handed.machine.join();
                (handed, None)
            }
            Err(reason) => resume_unwind(reason),
        }
    }

    /// Boots, but for the first step.
    pub(crate) fn build(self) -> Result<Rig, BootError> {
        capture_log();
        let cpus = self.cpus;
        let (boot, handed) = self.hand_over();
        let arch = |cpu| Fake { machine: handed.machine, cpu };
        let hypervisor = Hypervisor::new(&arch(CpuId(0)), boot)?;
        let hypervisor: &'static Hypervisor<Fake> = Box::leak(Box::new(hypervisor));
        let cpus = (0..cpus).map(CpuId).map(|id| Arc::new(Mutex::new(Cpu::new(arch(id), id, hypervisor))));
        Ok(Rig { cpus: cpus.collect(), hypervisor, handed })
    }

    /// As [`Plan::build`], for plans that boot.
    pub(crate) fn boot(self) -> Rig {
        self.build().unwrap_or_else(|error| panic!("{error}"))
    }
}

/// What a system was made of.
pub(crate) struct Handed {
    pub(crate) machine: &'static Machine,
    pub(crate) screen: Screen,
    pub(crate) host: Range<u64>,
    pub(crate) used: Vec<Range<u64>>,
    frames: &'static [Frame],
}

type SharedCpu = Arc<Mutex<Cpu<Fake>>>;

/// A system at work.
pub(crate) struct Rig {
    cpus: Vec<SharedCpu>,
    pub(crate) hypervisor: &'static Hypervisor<Fake>,
    pub(crate) handed: Handed,
}

impl Rig {
    pub(crate) fn machine(&self) -> &'static Machine {
        self.handed.machine
    }

    pub(crate) fn vm(&self, vm: usize) -> &'static Vm<Fake> {
        &self.hypervisor.vms[vm]
    }

    pub(crate) fn phases(&self) -> Vec<Phase> {
        self.hypervisor.vms.iter().map(|vm| vm.phase()).collect()
    }

    /// A way to call the core as if from CPU `cpu`.
    pub(crate) fn arch(&self, cpu: u32) -> Fake {
        Fake { machine: self.machine(), cpu: CpuId(cpu) }
    }

    pub(crate) fn replies(&self, vm: usize, vcpu: usize) -> Vec<Reply> {
        self.machine().with(|state| state.guest((vm, vcpu)).replies.clone())
    }

    /// How often the vCPU was started.
    pub(crate) fn boots(&self, vm: usize, vcpu: usize) -> usize {
        self.machine().with(|state| state.guest((vm, vcpu)).entries.len())
    }

    /// How many ticks the vCPU computed.
    pub(crate) fn worked(&self, vm: usize, vcpu: usize) -> u64 {
        self.machine().with(|state| state.guest((vm, vcpu)).worked)
    }

    pub(crate) fn is_off(&self) -> bool {
        self.machine().with(|state| state.off)
    }

    /// One decision of CPU `cpu`; `false` if it sleeps.
    pub(crate) fn step(&self, cpu: usize) -> bool {
        step(self.machine(), cpu, &self.cpus[cpu])
    }

    /// Lets CPU `other` take `steps` decisions in the middle of CPU `cpu`'s, at its call number `calls`.
    pub(crate) fn intrude(&self, cpu: usize, calls: usize, other: usize, steps: usize) {
        let (machine, shared) = (self.machine(), self.cpus[other].clone());
        machine.intrude(cpu_id(cpu), calls, move || {
            for _ in 0..steps {
                step(machine, other, &shared);
            }
        });
    }

    /// Steps all CPUs in turn until `reached`; when all sleep, the next deadline comes.
    pub(crate) fn until(&self, reached: impl Fn(&Self) -> bool) {
        for _ in 0..PATIENCE {
            let mut any = false;
            for cpu in 0..self.cpus.len() {
                if reached(self) {
                    return;
                }
                any |= self.step(cpu);
            }
            assert!(any || self.skip(), "all CPUs sleep for ever, the VMs are {:?}", self.phases());
        }
        panic!("it is never reached, the VMs are {:?}", self.phases());
    }

    /// Steps all CPUs in turn until all sleep.
    pub(crate) fn settle(&self) {
        for _ in 0..PATIENCE {
            if !(0..self.cpus.len()).fold(false, |any, cpu| self.step(cpu) | any) {
                return;
            }
        }
        panic!("the CPUs never sleep");
    }

    /// Steps all CPUs in turn until the clock shows `ticks` more.
    pub(crate) fn pass(&self, ticks: u64) {
        let end = self.now() + ticks;
        self.until(|rig| rig.now() >= end);
    }

    pub(crate) fn now(&self) -> u64 {
        self.machine().with(|state| state.now)
    }

    /// Moves the clock to the next deadline of a CPU that sleeps.
    fn skip(&self) -> bool {
        self.machine().with(|state| {
            let next = (0..self.cpus.len()).filter_map(|cpu| state.cpu(cpu_id(cpu)).deadline).min();
            next.map(|at| state.now = state.now.max(at.0)).is_some()
        })
    }

    /// Whether CPU `cpu` goes on after a panic now, between two steps.
    pub(crate) fn recover(&self, cpu: usize) -> bool {
        self.cpus[cpu].lock().unwrap().recover(Some("nobody's panic"))
    }

    /// Raises the test device's wire as its own hardware would, from CPU `cpu`.
    pub(crate) fn wake(&self, cpu: u32, vm: usize, vcpu: usize) {
        self.vm(vm).wake(&self.arch(cpu), bulkhead_vdev::VcpuSet::only(vcpu), None);
    }

    /// The host pages that VM number `vm` reaches, by walking its tables over `beyond` more pages than it has.
    pub(crate) fn reaches(&self, vm: usize, beyond: u64) -> Vec<(Gpa, u64)> {
        let frames = FramePool::new(self.handed.frames);
        let vm = self.vm(vm);
        let first = virt::RAM.0 - beyond * PAGE;
        let last = virt::RAM.0 + vm.config.ram_bytes + beyond * PAGE;
        (first..last)
            .step_by(4096)
            .filter_map(|at| vm.space.translate(&frames, Gpa(at)).map(|(host, _)| (Gpa(at), host.0)))
            .collect()
    }

    /// Whether vCPU `vcpu` waits.
    pub(crate) fn is_idle(&self, vm: usize, vcpu: usize) -> bool {
        self.vm(vm).is_idle(VcpuId(vcpu))
    }
}

fn cpu_id(cpu: usize) -> CpuId {
    CpuId(u32::try_from(cpu).unwrap())
}

fn step(machine: &'static Machine, id: usize, cpu: &SharedCpu) -> bool {
    if machine.with(|state| state.off) || !machine.wakes(cpu_id(id)) {
        return false;
    }
    let mut cpu = cpu.lock().unwrap_or_else(PoisonError::into_inner);
    let end = catch_unwind(AssertUnwindSafe(|| {
        if let Err(reason) = catch_unwind(AssertUnwindSafe(|| cpu.step())) {
            contain(&mut cpu, reason);
        }
    }));
    match end {
        Err(reason) if !reason.is::<PoweredOff>() => resume_unwind(reason),
        _ => true,
    }
}

/// A UART with endless room, which keeps what it was sent.
#[derive(Clone, Default)]
pub(crate) struct Screen(Arc<Mutex<Wire>>);

#[derive(Default)]
struct Wire {
    sent: Vec<u8>,
    typed: VecDeque<u8>,
}

impl Screen {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().sent.clone()).unwrap()
    }

    pub(crate) fn type_in(&self, text: &str) {
        self.0.lock().unwrap().typed.extend(text.bytes());
    }
}

impl Uart for Screen {
    fn has_room(&mut self) -> bool {
        true
    }

    fn put(&mut self, byte: u8) {
        self.0.lock().unwrap().sent.push(byte);
    }

    fn get(&mut self) -> Option<u8> {
        self.0.lock().unwrap().typed.pop_front()
    }

    fn want_room(&mut self, _wanted: bool) {}
}

thread_local! {
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOG.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

fn capture_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Log).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
    LOG.with_borrow_mut(Vec::clear);
}

/// What the core has logged in this test.
pub(crate) fn logged() -> Vec<String> {
    LOG.with_borrow(Clone::clone)
}

/// How often a line of the log holds `text`.
pub(crate) fn logged_with(text: &str) -> usize {
    logged().iter().filter(|line| line.contains(text)).count()
}

/// The fake's ticks for so many milliseconds.
pub(crate) fn milliseconds(count: u64) -> u64 {
    count * super::TICKS_PER_SECOND / 1000
}
