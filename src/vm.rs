//! One compartment: its memory, its devices, its vCPUs' states, and its life from load to end.
//!
//! A VM belongs to several physical CPUs at once. Everything here is either fixed at boot, atomic, or behind a lock
//! that only this VM's vCPUs take.

mod budget;
mod life;

pub use life::Phase;

use crate::arch::{
    Arch, Board, CpuId, Entry, Fault, Files, Place, Segment, StartError, Ticks, VcpuId, Window, Wired,
};
use crate::config::{self, Unmapped};
use crate::console::Console;
use crate::memory::guest_ram::GuestRam;
use crate::memory::table::Stage2;
use crate::turn::{Turn, Whose};
use alloc::boxed::Box;
use alloc::vec::Vec;
use budget::Budget;
use bulkhead_vdev::bus::Bus;
use bulkhead_vdev::{Access, Clock, Device, Gpa, IrqLines, Ports, VcpuSet, Wish};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use life::Life;
use spin::mutex::{SpinMutex as Mutex, SpinMutexGuard as MutexGuard};

/// Places without memory or device that are logged per VM, once each.
const LOGGED_PLACES: usize = 8;
/// No alarm.
const NEVER: u64 = u64::MAX;

/// What a VM is made of.
pub struct Parts<A: Arch> {
    /// Its number.
    pub index: usize,
    /// As configured.
    pub config: config::Vm,
    /// Its address space, in which `ram` is mapped.
    pub space: Stage2<A::Format>,
    /// Its RAM.
    pub ram: GuestRam,
    /// Its machine.
    pub board: Board,
    /// Where each vCPU runs.
    pub homes: Vec<Home>,
    /// The machine's consoles.
    pub console: &'static Console,
    /// Nanoseconds between 1970 and the moment when the counter was 0.
    pub epoch_ns: u64,
    /// What the counter showed when the loader entered us.
    pub entered: Ticks,
    /// Ticks of the counter that verifying the archive took.
    pub verifying: u64,
}

/// The physical CPU of a vCPU.
#[derive(Clone, Copy)]
pub struct Home {
    /// Which.
    pub cpu: CpuId,
    /// Whose turn it is there.
    pub turn: &'static Turn,
}

/// A virtual machine.
pub struct Vm<A: Arch> {
    /// Its number: also its console's, and the tag of its cached translations.
    pub index: usize,
    /// As configured.
    pub config: config::Vm,
    /// What it reaches.
    pub space: Stage2<A::Format>,
    /// What turns know it by.
    pub(crate) whose: Whose,
    irqs: Mutex<A::Irqs>,
    ram: GuestRam,
    memory_bus: Bus<Target>,
    port_bus: Bus<Target>,
    devices: Vec<Wiring>,
    segments: Vec<Segment>,
    entry: Entry,
    slots: Vec<Slot>,
    attention: AtomicU32,
    life: Life,
    nowhere: Nowhere,
    budget: Mutex<Budget>,
    pub(crate) console: &'static Console,
    epoch_ns: u64,
    /// What the counter showed when this boot of the VM began.
    began: AtomicU64,
    /// Ticks of the counter spent on the payload: verifying and copying.
    payload_ticks: AtomicU64,
}

/// Which device a window is of, and what the device calls its first byte.
#[derive(Clone, Copy)]
struct Target {
    device: u16,
    offset: u32,
}

/// A device, its wire, and when it wants to be called.
struct Wiring {
    line: Option<u32>,
    model: Mutex<Model>,
    alarm_ns: AtomicU64,
}

struct Model {
    device: Box<dyn Device>,
    level: bool,
}

/// What other CPUs may know of one vCPU.
struct Slot {
    home: Home,
    on: AtomicBool,
    idle: AtomicBool,
    entry: Mutex<Option<Entry>>,
}

/// Accesses to places where nothing is.
#[derive(Default)]
struct Nowhere {
    count: AtomicU64,
    places: Mutex<heapless::Vec<Place, LOGGED_PLACES>>,
}

/// What an access came to.
pub enum Answer {
    /// A device answered.
    Value(u64),
    /// Nothing is there.
    Nobody,
    /// A device answered, and switches the VM off.
    PowerOff,
    /// A device answered, and starts the VM again.
    Reset,
}

impl<A: Arch> Vm<A> {
    /// A VM about to be loaded.
    ///
    /// # Errors
    /// One line if two devices want the same window, or the payload does not fit.
    pub fn new(arch: &A, parts: Parts<A>) -> Result<Self, &'static str> {
        let [mut memory_bus, mut port_bus] = [Bus::new(), Bus::new()];
        for Window { base, len, device, offset } in parts.board.windows {
            let (bus, first) = match base {
                Place::Memory(at) => (&mut memory_bus, at),
                Place::Port(port) => (&mut port_bus, Gpa(u64::from(port))),
            };
            let (Ok(device), Ok(offset)) = (u16::try_from(device), u32::try_from(offset)) else {
                return Err("a device has too large a number");
            };
            bus.add(first, len, Target { device, offset })
                .map_err(|_| "two devices overlap in the guest's memory")?;
        }
        let wiring = |Wired { device, line }| {
            let model = Mutex::new(Model { device, level: false });
            Wiring { line, model, alarm_ns: AtomicU64::new(NEVER) }
        };
        let devices = parts.board.devices.into_iter().map(wiring).collect();
        for segment in &parts.board.segments {
            parts
                .ram
                .pieces(segment.to, segment.bytes.len(), |_, _, _| ())
                .map_err(|_| "its payload does not fit into its RAM: give it more, or a smaller payload")?;
        }
        let slots = parts.homes.into_iter().map(|home| Slot {
            home,
            on: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            entry: Mutex::new(None),
        });
        Ok(Self {
            index: parts.index,
            whose: Whose::vm(parts.index),
            irqs: Mutex::new(arch.irqs(&parts.config)),
            config: parts.config,
            space: parts.space,
            ram: parts.ram,
            memory_bus,
            port_bus,
            devices,
            segments: parts.board.segments,
            entry: parts.board.entry,
            slots: slots.collect(),
            attention: AtomicU32::new(0),
            life: Life::new(),
            nowhere: Nowhere::default(),
            budget: Mutex::new(Budget::new()),
            console: parts.console,
            epoch_ns: parts.epoch_ns,
            began: AtomicU64::new(parts.entered.0),
            payload_ticks: AtomicU64::new(parts.verifying),
        })
    }

    /// The physical CPU of each vCPU, in order.
    pub fn cpus(&self) -> impl Iterator<Item = CpuId> {
        self.slots.iter().map(|slot| slot.home.cpu)
    }

    /// How many vCPUs it has.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.slots.len()
    }

    /// The physical CPU that loads the VM and keeps its devices' time.
    #[must_use]
    pub fn keeper(&self) -> Option<CpuId> {
        self.slots.first().map(|slot| slot.home.cpu)
    }

    /// Its RAM.
    #[must_use]
    #[inline]
    pub fn memory(&self) -> &GuestRam {
        &self.ram
    }

    /// Its interrupt controller.
    #[inline(always)]
    pub fn irqs(&self, arch: &A) -> MutexGuard<'_, A::Irqs> {
        self.lock(arch, &self.irqs)
    }

    /// Locks what only this VM's CPUs lock. If the VM was condemned meanwhile, the lock may never be free again: then the
    /// caller does not go on.
    #[inline(always)]
    fn lock<'a, T: ?Sized>(&self, arch: &A, what: &'a Mutex<T>) -> MutexGuard<'a, T> {
        loop {
            if let Some(guard) = what.try_lock_weak() {
                return guard;
            }
            while what.is_locked() {
                if self.phase() == Phase::Ended {
                    arch.give_up();
                }
                core::hint::spin_loop();
            }
        }
    }

    // Accesses

    /// Performs a guest's access to something that is not RAM.
    #[inline]
    pub fn io(&self, arch: &A, vcpu: VcpuId, place: Place, access: Access) -> Answer {
        let found = match place {
            Place::Memory(at) => self.memory_bus.find(at, access.width()),
            Place::Port(port) => self.port_bus.find(Gpa(u64::from(port)), access.width()),
        };
        let Some((target, offset)) = found else { return Answer::Nobody };
        let Some(wired) = self.devices.get(usize::from(target.device)) else { return Answer::Nobody };
        let offset = offset.wrapping_add(target.offset.into());
        if let Access::Read(width) = access
            && let Some(value) = self.lock(arch, &wired.model).device.peek(offset, width)
        {
            return Answer::Value(value);
        }
        // Devices in memory have hardly a register that is only stored.
        if A::HAS_PORTS
            && let (Place::Port(_), Access::Write(width, value)) = (place, access)
            && self.lock(arch, &wired.model).device.poke(offset, width, value)
        {
            return Answer::Value(0);
        }
        self.access(arch, wired, vcpu, offset, access)
    }

    #[inline(never)]
    fn access(&self, arch: &A, wired: &Wiring, vcpu: VcpuId, offset: u64, access: Access) -> Answer {
        self.with_device(arch, wired, Some(vcpu), |device, ports| {
            let value = device.access(offset, access, ports);
            match ports.wish {
                None => Answer::Value(value),
                Some(Wish::PowerOff) => Answer::PowerOff,
                Some(Wish::Reset) => Answer::Reset,
            }
        })
    }

    /// Counts an access to a place where nothing is, and logs the first of each place. The guest goes on as on the real
    /// machine, unless its integrator wants it strict.
    ///
    /// # Errors
    /// The fault that ends a VM with `unmapped = "stop"`.
    #[cold]
    #[inline(never)]
    pub fn nowhere(&self, arch: &A, place: Place, access: Access) -> Result<(), Fault> {
        self.nowhere.count.fetch_add(1, Ordering::Relaxed);
        let (did, cause) = match access {
            Access::Read(_) => ("read from", "it read where nothing is"),
            Access::Write(..) => ("write to", "it wrote where nothing is"),
        };
        if self.config.unmapped == Unmapped::Stop {
            return Err(Fault { cause, at: Some(place) });
        }
        let mut places = self.lock(arch, &self.nowhere.places);
        if !places.contains(&place) && places.push(place).is_ok() {
            log::warn!("{}: {did} {place}, where nothing is", self.config.name);
        }
        Ok(())
    }

    /// Whether so many lines about the VM may go to the log. It says so when some were left out before.
    #[cold]
    pub fn may_log(&self, arch: &A, lines: u64) -> bool {
        let left_out = self.lock(arch, &self.budget).take(arch.now(), arch.ticks_per_second(), lines);
        if let Some(count @ 1..) = left_out {
            log::warn!("{}: {count} lines were left out here, because there were too many", self.config.name);
        }
        left_out.is_some()
    }

    /// How many accesses to places where nothing is there were.
    #[must_use]
    pub fn nowhere_count(&self) -> u64 {
        self.nowhere.count.load(Ordering::Relaxed)
    }

    /// Tells the devices that the console has input or room.
    pub fn notify(&self, arch: &A) {
        if self.phase() == Phase::Ended {
            return;
        }
        for wired in &self.devices {
            self.with_device(arch, wired, None, |device, ports| device.notify(ports));
        }
    }

    /// Calls the devices whose time has come.
    pub fn ring_alarms(&self, arch: &A) {
        let now = HostClock { arch, epoch_ns: self.epoch_ns }.now_ns();
        for wired in &self.devices {
            if wired.alarm_ns.load(Ordering::Relaxed) <= now {
                self.with_device(arch, wired, None, |device, ports| device.notify(ports));
            }
        }
    }

    /// When the next device's time comes.
    pub fn next_alarm(&self, arch: &A) -> Option<Ticks> {
        let next = self.devices.iter().map(|wired| wired.alarm_ns.load(Ordering::Relaxed)).min()?;
        (next != NEVER).then(|| Ticks(scale(next, arch.ticks_per_second(), NANOSECONDS)))
    }

    /// Lends the device what it needs for one call, then carries its wire and its alarm on.
    #[inline]
    fn with_device<T>(
        &self,
        arch: &A,
        wired: &Wiring,
        from: Option<VcpuId>,
        call: impl FnOnce(&mut dyn Device, &mut Ports<'_>) -> T,
    ) -> T {
        let mut model = self.lock(arch, &wired.model);
        let mut console = self.console.of(self.index);
        let clock = HostClock { arch, epoch_ns: self.epoch_ns };
        let mut ports = Ports { console: &mut console, memory: &self.ram, clock: &clock, wish: None };
        let result = call(&mut *model.device, &mut ports);
        let level = model.device.irq();
        if level != model.level {
            model.level = level;
            if let Some(line) = wired.line {
                let woken = self.irqs(arch).set_line(line, level);
                self.wake(arch, woken, from);
            }
        }
        let alarm = model.device.alarm().unwrap_or(NEVER);
        let before = wired.alarm_ns.load(Ordering::Relaxed);
        if alarm != before {
            wired.alarm_ns.store(alarm, Ordering::Relaxed);
            // For a later one nobody is called: the keeper comes at the earlier time, and looks again.
            if alarm < before
                && let Some(keeper) = self.slots.first()
            {
                self.call(arch, keeper);
            }
        }
        result
    }

    // Interrupts and waiting

    /// Makes the vCPUs of `set` look at their interrupts. `from` is the caller's own vCPU, which does so before it runs on.
    #[inline]
    pub fn wake(&self, arch: &A, set: VcpuSet, from: Option<VcpuId>) {
        if set != VcpuSet::EMPTY {
            self.wake_all(arch, set, from);
        }
    }

    #[inline(never)]
    fn wake_all(&self, arch: &A, set: VcpuSet, from: Option<VcpuId>) {
        self.attention.fetch_or(set.0, Ordering::SeqCst);
        for vcpu in set.iter() {
            let Some(slot) = self.slots.get(vcpu) else { return };
            if slot.idle.load(Ordering::SeqCst) && slot.idle.swap(false, Ordering::SeqCst) {
                self.call(arch, slot);
            } else if from != Some(VcpuId(vcpu)) && slot.home.turn.is_of(self.whose) {
                arch.nudge(slot.home.cpu);
            }
        }
    }

    /// Makes the CPU of a vCPU look at what was changed for it: at once, unless that is another VM's turn.
    #[cold]
    fn call(&self, arch: &A, slot: &Slot) {
        if slot.home.turn.call(self.whose) {
            arch.kick(slot.home.cpu);
        }
    }

    /// Whether `vcpu` was told to look at its interrupts since the last call.
    #[inline]
    pub fn take_attention(&self, vcpu: VcpuId) -> bool {
        let bit = VcpuSet::only(vcpu.0).0;
        self.attention.load(Ordering::Relaxed) & bit != 0
            && self.attention.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// The vCPU waits from now on; `false` if there is something to look at already.
    pub fn go_idle(&self, vcpu: VcpuId) -> bool {
        let Some(slot) = self.slots.get(vcpu.0) else { return false };
        slot.idle.store(true, Ordering::SeqCst);
        if self.attention.load(Ordering::SeqCst) & VcpuSet::only(vcpu.0).0 != 0 {
            slot.idle.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// The vCPU has a reason to run again.
    pub fn stop_waiting(&self, vcpu: VcpuId) {
        if let Some(slot) = self.slots.get(vcpu.0) {
            slot.idle.store(false, Ordering::SeqCst);
        }
    }

    /// Whether the vCPU waits.
    #[must_use]
    pub fn is_idle(&self, vcpu: VcpuId) -> bool {
        self.slots.get(vcpu.0).is_some_and(|slot| slot.idle.load(Ordering::SeqCst))
    }

    // Power of single vCPUs

    /// Whether the vCPU is switched on; `None` if the VM has no such vCPU.
    #[must_use]
    pub fn is_on(&self, vcpu: VcpuId) -> Option<bool> {
        self.slots.get(vcpu.0).map(|slot| slot.on.load(Ordering::SeqCst))
    }

    /// Switches a vCPU on.
    ///
    /// # Errors
    /// [`StartError`].
    #[inline(never)]
    pub fn start(&self, arch: &A, vcpu: VcpuId, entry: Entry) -> Result<(), StartError> {
        let slot = self.slots.get(vcpu.0).ok_or(StartError::NoSuchVcpu)?;
        let mut waiting = self.lock(arch, &slot.entry);
        if slot.on.swap(true, Ordering::SeqCst) {
            return Err(StartError::AlreadyOn);
        }
        *waiting = Some(entry);
        slot.idle.store(false, Ordering::SeqCst);
        drop(waiting);
        self.call(arch, slot);
        Ok(())
    }

    /// Where a vCPU that was switched on has to start, once.
    pub fn take_entry(&self, arch: &A, vcpu: VcpuId) -> Option<Entry> {
        self.lock(arch, &self.slots.get(vcpu.0)?.entry).take()
    }

    /// The vCPU switched itself off.
    pub fn switched_off(&self, vcpu: VcpuId) {
        if let Some(slot) = self.slots.get(vcpu.0) {
            slot.on.store(false, Ordering::SeqCst);
        }
    }

    /// Switches vCPUs off, wherever they are; each leaves its CPU before it can be switched on again. One that is off already
    /// has been told.
    pub fn switch_off(&self, arch: &A, set: VcpuSet) {
        for vcpu in set.iter() {
            let Some(slot) = self.slots.get(vcpu) else { return };
            let mut waiting = self.lock(arch, &slot.entry);
            *waiting = None;
            let was_on = slot.on.swap(false, Ordering::SeqCst);
            drop(waiting);
            if was_on {
                self.call(arch, slot);
            }
        }
    }

    /// Whether all vCPUs are off: nothing can ever switch one on again.
    #[must_use]
    pub fn is_all_off(&self) -> bool {
        self.slots.iter().all(|slot| !slot.on.load(Ordering::SeqCst))
    }
}

const NANOSECONDS: u64 = 1_000_000_000;

/// `value` times `up` by `down`, without overflow in between.
fn scale(value: u64, up: u64, down: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(up) / u128::from(down.max(1))).unwrap_or(u64::MAX)
}

struct HostClock<'a, A> {
    arch: &'a A,
    epoch_ns: u64,
}

impl<A: Arch> Clock for HostClock<'_, A> {
    fn now_ns(&self) -> u64 {
        scale(self.arch.now().0, NANOSECONDS, self.arch.ticks_per_second())
    }

    fn epoch_ns(&self) -> u64 {
        self.epoch_ns
    }
}

/// The kernel and the initial RAM disk that `vm` boots from.
pub(crate) fn files(
    vm: &config::Vm,
    file: impl Fn(config::FileId) -> Option<&'static [u8]>,
) -> Option<Files> {
    let initrd = match vm.kernel.initrd {
        Some(id) => Some(file(id)?),
        None => None,
    };
    Some(Files { kernel: file(vm.kernel.file)?, initrd })
}
