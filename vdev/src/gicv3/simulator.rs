//! For tests: the hardware half, as an array of list registers that a simulated guest acknowledges and ends
//! interrupts through (IHI 0069, chapters 4 and 6).

use alloc::vec::Vec;

use super::{Gicv3, HardwareLine, ListRegister, Maintenance, VirtualInterface};
use crate::{Access, IrqLines, VcpuSet, Width};

pub(super) const TIMERS: [HardwareLine; 2] =
    [HardwareLine { intid: 27, physical: 27 }, HardwareLine { intid: 30, physical: 26 }];

/// One physical CPU with the guest that runs on it.
#[derive(Clone, Debug)]
pub(super) struct Cpu {
    pub(super) lists: Vec<ListRegister>,
    pub(super) eoi_count: u32,
    pub(super) maintenance: Maintenance,
    /// The levels of the timers, by the guest's numbers.
    pub(super) lines: u32,
    /// What is active in the physical controller.
    pub(super) physical: u32,
    /// Acknowledged and not ended: number and priority.
    pub(super) running: Vec<(u32, u8)>,
    pub(super) maintained: u32,
}

impl Cpu {
    pub(super) fn new(count: usize) -> Self {
        Self {
            lists: alloc::vec![ListRegister::INVALID; count],
            eoi_count: 0,
            maintenance: Maintenance::empty(),
            lines: 0,
            physical: 0,
            running: Vec::new(),
            maintained: 0,
        }
    }

    /// A read of `ICC_IAR1_EL1`.
    pub(super) fn acknowledge(&mut self) -> Option<u32> {
        let running = self.running.last().map_or(u8::MAX, |&(_, priority)| priority);
        let lists = self.lists.iter_mut().filter(|list| list.is_pending() && !list.is_active());
        let best = lists.min_by_key(|list| (list.priority(), list.intid()))?;
        if best.priority() >= running {
            return None;
        }
        *best = ListRegister(best.0 & !(3 << 62)).active();
        self.running.push((best.intid(), best.priority()));
        Some(best.intid())
    }

    /// A write of the last acknowledged number to `ICC_EOIR1_EL1`, which deactivates too.
    pub(super) fn end(&mut self) -> Option<u32> {
        let (intid, _) = self.running.pop()?;
        let Some(list) = self.lists.iter_mut().find(|list| list.is_active() && list.intid() == intid) else {
            self.eoi_count += 1;
            return Some(intid);
        };
        list.0 &= !(1 << 63);
        if let Some(physical) = list.physical() {
            assert_ne!(self.physical >> physical & 1, 0, "{intid} is linked but not physically active");
            self.physical &= !(1 << physical);
        }
        Some(intid)
    }

    /// Whether the maintenance interrupt is asserted (`ICH_MISR_EL2`).
    pub(super) fn wants_maintenance(&self) -> bool {
        let valid = self.lists.iter().filter(|list| list.is_valid()).count();
        let pending = self.lists.iter().any(|list| list.is_pending() && !list.is_active());
        self.lists.iter().any(|list| !list.is_valid() && list.has_eoi())
            || self.maintenance.contains(Maintenance::UNDERFLOW) && valid <= 1
            || self.maintenance.contains(Maintenance::NO_PENDING) && !pending
            || self.maintenance.contains(Maintenance::EOI_NO_LR) && self.eoi_count != 0
    }

    pub(super) fn lists(&self, intid: u32) -> Option<ListRegister> {
        let mut held = self.lists.iter().copied().filter(|list| list.is_valid() && list.intid() == intid);
        let first = held.next();
        assert!(held.next().is_none(), "{intid} is in two list registers");
        first
    }
}

impl VirtualInterface for Cpu {
    fn count(&self) -> usize {
        self.lists.len()
    }

    fn read(&self, index: usize) -> ListRegister {
        self.lists[index]
    }

    fn write(&mut self, index: usize, value: ListRegister) {
        self.lists[index] = value;
        if let Some(physical) = value.physical().filter(|_| value.is_valid()) {
            assert_ne!(self.physical >> physical & 1, 0, "linked to {physical}, which is not active");
        }
    }

    fn empty(&self) -> u32 {
        let lists = self.lists.iter().enumerate();
        lists.filter(|(_, list)| !list.is_valid() && !list.has_eoi()).fold(0, |bits, (n, _)| bits | 1 << n)
    }

    fn take_eoi_count(&mut self) -> u32 {
        core::mem::take(&mut self.eoi_count)
    }

    fn set_maintenance(&mut self, wanted: Maintenance) {
        self.maintenance = wanted;
    }

    fn line(&self, intid: u32) -> bool {
        self.lines >> intid & 1 != 0
    }

    fn deactivate(&mut self, physical: u32) {
        assert_ne!(self.physical >> physical & 1, 0, "{physical} is not active");
        self.physical &= !(1 << physical);
    }
}

/// A VM whose vCPUs all run, each on its own CPU. Kicks and maintenance interrupts arrive at once.
pub(super) struct Machine {
    pub(super) gic: Gicv3,
    pub(super) cpus: Vec<Cpu>,
    /// Whether each vCPU is on its CPU.
    pub(super) loaded: Vec<bool>,
}

impl Machine {
    pub(super) fn new(vcpus: usize, lists: usize) -> Self {
        let gic = Gicv3::new(vcpus, TIMERS);
        let cpus = (0..vcpus).map(|_| Cpu::new(lists)).collect();
        let mut machine = Self { gic, cpus, loaded: alloc::vec![true; vcpus] };
        machine.run();
        machine
    }

    /// Both groups forwarded, all interrupts in group 1 and enabled.
    pub(super) fn open(vcpus: usize, lists: usize) -> Self {
        let mut machine = Self::new(vcpus, lists);
        machine.write(0, 0, 3);
        for word in 1..9 {
            machine.write(0, 0x80 + 4 * word, u32::MAX);
            machine.write(0, 0x100 + 4 * word, u32::MAX);
        }
        for vcpu in 0..vcpus {
            machine.write_private(vcpu, vcpu, 0x80, u32::MAX);
            machine.write_private(vcpu, vcpu, 0x100, u32::MAX);
        }
        machine
    }

    /// Everything that happens by itself, until nothing more does.
    pub(super) fn run(&mut self) {
        for _ in 0..1000 {
            let mut still = true;
            for vcpu in 0..self.cpus.len() {
                still &= self.step(vcpu);
            }
            if still {
                return;
            }
        }
        panic!("the machine never comes to rest");
    }

    fn step(&mut self, vcpu: usize) -> bool {
        if !self.loaded[vcpu] {
            return true;
        }
        let cpu = &mut self.cpus[vcpu];
        let mut still = true;
        for timer in TIMERS {
            if cpu.lines >> timer.intid & 1 != 0 && cpu.physical >> timer.physical & 1 == 0 {
                cpu.physical |= 1 << timer.physical;
                self.gic.timer_fired(vcpu, timer.intid, cpu);
                still = false;
            }
        }
        let maintenance = cpu.wants_maintenance();
        if self.gic.wants_refresh(vcpu) || maintenance {
            cpu.maintained += u32::from(maintenance);
            let kick = self.gic.refresh(vcpu, cpu);
            self.check_kick(vcpu, kick);
            still = false;
        }
        still
    }

    /// Who is told to look has something to look at, and who has something runs or is told.
    fn check_kick(&self, acting: usize, kick: VcpuSet) {
        assert!(!kick.has(acting));
        for vcpu in 0..self.cpus.len() {
            assert!(!kick.has(vcpu) || self.gic.wants_refresh(vcpu));
        }
    }

    /// One call by `vcpu`; everybody who has to act but was not told is an error.
    fn call<R>(&mut self, vcpu: usize, call: impl FnOnce(&mut Gicv3, &mut Cpu) -> (R, VcpuSet)) -> R {
        let before: Vec<bool> = (0..self.cpus.len()).map(|v| self.gic.wants_refresh(v)).collect();
        let (result, kick) = call(&mut self.gic, &mut self.cpus[vcpu]);
        self.check_kick(vcpu, kick);
        for other in (0..self.cpus.len()).filter(|&other| other != vcpu) {
            assert!(
                before[other] || !self.gic.wants_refresh(other) || kick.has(other),
                "{other} was not told"
            );
        }
        self.run();
        result
    }

    pub(super) fn access(&mut self, vcpu: usize, offset: u64, access: Access) -> u64 {
        self.call(vcpu, |gic, cpu| gic.distributor(vcpu, offset, access, cpu))
    }

    pub(super) fn access_private(&mut self, vcpu: usize, offset: u64, access: Access) -> u64 {
        self.call(vcpu, |gic, cpu| gic.redistributor(vcpu, offset, access, cpu))
    }

    pub(super) fn read(&mut self, vcpu: usize, offset: u64) -> u32 {
        u32::try_from(self.access(vcpu, offset, Access::Read(Width::Word))).unwrap()
    }

    pub(super) fn write(&mut self, vcpu: usize, offset: u64, value: u32) {
        self.access(vcpu, offset, Access::Write(Width::Word, value.into()));
    }

    /// In the frame of `owner`'s private interrupts.
    pub(super) fn read_private(&mut self, vcpu: usize, owner: usize, offset: u64) -> u32 {
        let offset = (owner as u64) << 17 | 0x1_0000 | offset;
        u32::try_from(self.access_private(vcpu, offset, Access::Read(Width::Word))).unwrap()
    }

    pub(super) fn write_private(&mut self, vcpu: usize, owner: usize, offset: u64, value: u32) {
        let offset = (owner as u64) << 17 | 0x1_0000 | offset;
        self.access_private(vcpu, offset, Access::Write(Width::Word, value.into()));
    }

    pub(super) fn set_line(&mut self, line: u32, level: bool) {
        let kick = self.gic.set_line(line, level);
        assert!((0..self.cpus.len()).all(|vcpu| !kick.has(vcpu) || self.gic.wants_refresh(vcpu)));
        self.run();
    }

    pub(super) fn send_sgi(&mut self, from: usize, value: u64) {
        self.call(from, |gic, cpu| ((), gic.send_sgi(from, value, cpu)));
    }

    pub(super) fn deactivate(&mut self, vcpu: usize, intid: u32) {
        self.call(vcpu, |gic, cpu| ((), gic.deactivate(vcpu, intid, cpu)));
    }

    /// A timer's line; when it falls, the vCPU happens to leave its guest for another reason.
    pub(super) fn set_timer(&mut self, vcpu: usize, intid: u32, level: bool) {
        let bit = 1 << intid;
        self.cpus[vcpu].lines = self.cpus[vcpu].lines & !bit | if level { bit } else { 0 };
        if !level && self.loaded[vcpu] {
            self.call(vcpu, |gic, cpu| ((), gic.refresh(vcpu, cpu)));
        }
        self.run();
    }

    pub(super) fn acknowledge(&mut self, vcpu: usize) -> Option<u32> {
        let intid = self.cpus[vcpu].acknowledge();
        self.run();
        intid
    }

    pub(super) fn end(&mut self, vcpu: usize) -> Option<u32> {
        let intid = self.cpus[vcpu].end();
        self.run();
        intid
    }

    pub(super) fn unload(&mut self, vcpu: usize) {
        self.loaded[vcpu] = false;
        self.call(vcpu, |gic, cpu| gic.unload(vcpu, cpu));
        assert_eq!(self.cpus[vcpu].physical, 0);
        assert!(!self.cpus[vcpu].wants_maintenance());
        assert!(self.cpus[vcpu].lists.iter().all(|list| !list.is_valid()));
    }

    pub(super) fn load(&mut self, vcpu: usize) {
        let (gic, cpu) = (&mut self.gic, &mut self.cpus[vcpu]);
        // The caller makes these active again; here before, so that links can be checked as they are written.
        cpu.physical = TIMERS.iter().fold(0, |bits, timer| bits | 1 << timer.physical);
        let (held, kick) = gic.load(vcpu, cpu);
        cpu.physical =
            TIMERS.iter().filter(|t| held >> t.intid & 1 != 0).fold(0, |bits, t| bits | 1 << t.physical);
        self.check_kick(vcpu, kick);
        self.loaded[vcpu] = true;
        self.run();
    }
}
