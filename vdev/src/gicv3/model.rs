//! The controller against a naive model: what is pending, what is active, who takes what next.

use alloc::vec::Vec;

use proptest::prelude::*;

use super::simulator::{Machine, TIMERS};
use super::tests::{
    ICACTIVER, ICENABLER, ICFGR, ICPENDR, ISACTIVER, ISENABLER, ISPENDR, set_priority, set_route, sgi,
};
use crate::{Access, Width};

/// One interrupt of the naive model.
#[derive(Clone, Copy, Default)]
struct Model {
    latched: bool,
    level: bool,
    edge: bool,
    enabled: bool,
    priority: u8,
    /// The vCPU it is active on.
    active: Option<usize>,
    route: Option<usize>,
}

/// The machine, and beside it what should happen.
struct Pair {
    machine: Machine,
    private: Vec<[Model; 32]>,
    shared: [Model; 288],
    running: Vec<Vec<(u32, u8)>>,
}

const VCPUS: usize = 3;
const INTERRUPTS: [u32; 12] = [0, 1, 7, 16, 27, 30, 32, 33, 34, 64, 65, 287];

impl Pair {
    fn new(lists: usize) -> Self {
        let mut shared = [Model { enabled: true, route: Some(0), ..Model::default() }; 288];
        let mut machine = Machine::open(VCPUS, lists);
        machine.write(0, ICFGR + 8, 2 << 2);
        machine.write(0, ICFGR + 16, 2);
        shared[33].edge = true;
        shared[64].edge = true;
        let private =
            core::array::from_fn(|intid| Model { enabled: true, edge: intid < 16, ..Model::default() });
        let mut pair = Self {
            machine,
            private: (0..VCPUS).map(|vcpu| private.map(|irq| Model { route: Some(vcpu), ..irq })).collect(),
            shared,
            running: alloc::vec![Vec::new(); VCPUS],
        };
        for intid in INTERRUPTS {
            for vcpu in 0..VCPUS {
                pair.set_priority(vcpu, intid, 0x80);
            }
        }
        pair
    }

    fn model(&mut self, vcpu: usize, intid: u32) -> &mut Model {
        if intid < 32 { &mut self.private[vcpu][intid as usize] } else { &mut self.shared[intid as usize] }
    }

    fn set_priority(&mut self, vcpu: usize, intid: u32, priority: u8) {
        set_priority(&mut self.machine, vcpu, intid, priority);
        self.model(vcpu, intid).priority = priority;
    }

    fn write(&mut self, acting: usize, owner: usize, register: u64, intid: u32) {
        let bit = 1 << (intid & 31);
        if intid < 32 {
            self.machine.write_private(acting, owner, register, bit);
        } else {
            self.machine.write(acting, register + u64::from(intid / 32) * 4, bit);
        }
    }

    /// What the vCPU would acknowledge now.
    fn best(&mut self, vcpu: usize) -> Option<u32> {
        let running = self.running[vcpu].last().map_or(u8::MAX, |&(_, priority)| priority);
        let ready = |irq: &Model| {
            irq.enabled
                && irq.active.is_none()
                && irq.route == Some(vcpu)
                && (irq.latched || irq.level && !irq.edge)
        };
        let mut best = None;
        for intid in INTERRUPTS {
            let irq = self.model(vcpu, intid);
            if ready(irq) && best.is_none_or(|(_, priority)| irq.priority < priority) {
                best = Some((intid, irq.priority));
            }
        }
        best.filter(|&(_, priority)| priority < running).map(|(intid, _)| intid)
    }

    fn acknowledge(&mut self, vcpu: usize) {
        let wanted = self.best(vcpu);
        assert_eq!(self.machine.acknowledge(vcpu), wanted);
        if let Some(intid) = wanted {
            let irq = self.model(vcpu, intid);
            irq.latched = false;
            irq.active = Some(vcpu);
            let priority = irq.priority;
            self.running[vcpu].push((intid, priority));
        }
    }

    fn end(&mut self, vcpu: usize) {
        let wanted = self.running[vcpu].pop().map(|(intid, _)| intid);
        assert_eq!(self.machine.end(vcpu), wanted);
        if let Some(intid) = wanted {
            let irq = self.model(vcpu, intid);
            irq.active = irq.active.filter(|&owner| owner != vcpu);
        }
    }

    fn step(&mut self, kind: u8, acting: usize, owner: usize, which: usize, value: u8) {
        let intid = INTERRUPTS[which];
        let owner = if intid < 32 { owner } else { acting };
        let timer = TIMERS.iter().any(|timer| timer.intid == intid);
        match kind {
            0..3 => self.acknowledge(acting),
            3..6 => self.end(acting),
            6 | 7 if intid < 16 => {
                self.machine.send_sgi(acting, sgi(intid.into(), u64::from(value)));
                for target in (0..VCPUS).filter(|target| value >> target & 1 != 0) {
                    self.private[target][intid as usize].latched = true;
                }
            }
            6 | 7 if timer => {
                self.machine.set_timer(owner, intid, value & 1 != 0);
                self.model(owner, intid).level = value & 1 != 0;
            }
            6 | 7 if intid >= 32 => {
                self.machine.set_line(intid, value & 1 != 0);
                let irq = self.model(0, intid);
                irq.latched |= irq.edge && value & 1 != 0 && !irq.level;
                irq.level = value & 1 != 0;
            }
            8 => {
                self.write(acting, owner, ISPENDR, intid);
                self.model(owner, intid).latched = true;
            }
            9 => {
                self.write(acting, owner, ICPENDR, intid);
                self.model(owner, intid).latched = false;
            }
            10 => {
                self.write(acting, owner, ISENABLER, intid);
                self.model(owner, intid).enabled = true;
            }
            11 => {
                self.write(acting, owner, ICENABLER, intid);
                self.model(owner, intid).enabled = false;
            }
            12 if self.model(acting, intid).active.is_none() => {
                self.set_priority(acting, intid, value & 0x78);
            }
            13 if intid >= 32 => {
                set_route(&mut self.machine, acting, intid, u64::from(value & 3));
                self.model(0, intid).route = Some(usize::from(value & 3)).filter(|&target| target < VCPUS);
            }
            14 => self.check_state(acting),
            15 => {
                self.machine.unload(acting);
                self.machine.load(acting);
            }
            _ => self.touch_active(kind, acting, owner, intid),
        }
        for vcpu in 0..VCPUS {
            if self.best(vcpu).is_some() {
                assert!(self.machine.gic.has_pending(vcpu, &self.machine.cpus[vcpu]));
            }
        }
    }

    fn touch_active(&mut self, kind: u8, acting: usize, owner: usize, intid: u32) {
        match kind {
            16 => {
                self.write(acting, owner, ISACTIVER, intid);
                let irq = self.model(owner, intid);
                irq.active = irq.active.or(Some(irq.route.unwrap_or(0)));
            }
            17 => {
                self.write(acting, owner, ICACTIVER, intid);
                self.model(owner, intid).active = None;
            }
            18 => {
                self.machine.deactivate(acting, intid);
                self.model(acting, intid).active = None;
            }
            _ => {}
        }
    }

    /// The state registers, read by `vcpu` twice: the second time everybody has brought his up to date.
    fn check_state(&mut self, vcpu: usize) {
        for intid in INTERRUPTS {
            let (word, bit) = (u64::from(intid / 32), intid & 31);
            let [pending, active] = [ISPENDR, ISACTIVER].map(|register| {
                let mut read = || {
                    if word == 0 {
                        self.machine.read_private(vcpu, vcpu, register)
                    } else {
                        self.machine.read(vcpu, register + 4 * word)
                    }
                };
                read();
                read() >> bit & 1 != 0
            });
            let irq = *self.model(vcpu, intid);
            assert_eq!(active, irq.active.is_some(), "{intid} active");
            assert_eq!(pending, irq.latched || irq.level && !irq.edge, "{intid} pending");
        }
    }

    /// Everybody takes all there is, lines low: nothing may be left anywhere.
    fn drain(&mut self) {
        for vcpu in 0..VCPUS {
            for timer in TIMERS {
                self.machine.set_timer(vcpu, timer.intid, false);
                self.model(vcpu, timer.intid).level = false;
            }
        }
        for intid in INTERRUPTS.into_iter().filter(|&intid| intid >= 32) {
            self.machine.set_line(intid, false);
            self.model(0, intid).level = false;
        }
        for vcpu in 0..VCPUS {
            while !self.running[vcpu].is_empty() || self.best(vcpu).is_some() {
                self.acknowledge(vcpu);
                self.end(vcpu);
            }
        }
    }
}

/// Operation, acting vCPU, owner of a private interrupt, interrupt, value.
fn steps(kinds: u8) -> impl Strategy<Value = Vec<(u8, usize, usize, usize, u8)>> {
    prop::collection::vec((0..kinds, 0..VCPUS, 0..VCPUS, 0..INTERRUPTS.len(), any::<u8>()), 1..300)
}

proptest! {
    #[test]
    fn nothing_is_lost_doubled_or_out_of_order(lists in 1usize..=16, steps in steps(16)) {
        let mut pair = Pair::new(lists);
        for (kind, acting, owner, which, value) in steps {
            pair.step(kind, acting, owner, which, value);
        }
        pair.drain();
        pair.check_state(0);
    }

    #[test]
    fn writes_to_active_state_take_effect_wherever_the_interrupt_is(steps in steps(19)) {
        let mut pair = Pair::new(16);
        for (kind, acting, owner, which, value) in steps {
            pair.step(kind, acting, owner, which, value);
        }
        pair.drain();
        pair.check_state(1);
    }

    #[test]
    fn no_guest_can_make_it_panic(
        lists in 1usize..=16,
        steps in prop::collection::vec((0u8..8, 0usize..20, any::<u64>(), any::<u64>(), 0usize..4), 1..300),
    ) {
        let mut machine = Machine::open(2, lists);
        for (kind, vcpu, place, value, width) in steps {
            let width = [Width::Byte, Width::Half, Width::Word, Width::Double][width];
            let vcpu = vcpu % 2;
            let access = if kind & 1 == 0 { Access::Read(width) } else { Access::Write(width, value & width.mask()) };
            match kind {
                0 | 1 => { machine.access(vcpu, place & 0xffff, access); }
                2 | 3 => { machine.access_private(vcpu, place & 0xf_ffff, access); }
                4 => machine.send_sgi(vcpu, value),
                5 => { machine.acknowledge(vcpu); }
                6 => { machine.end(vcpu); }
                _ => machine.deactivate(vcpu, (value & 0x7ff) as u32),
            }
        }
    }
}
