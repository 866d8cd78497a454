//! The local APICs against a naive model of the manual's rules, under random registers, and under real concurrency.

extern crate std;

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use proptest::prelude::*;

use super::register as reg;
use super::tests::{ENABLED, X2APIC, XAPIC, enabled, setup};
use super::{
    Apics, Delivery, Destination, Effect, Features, LocalApic, Message, Owner, Page, Setup, Trigger,
};
use crate::{Access, Width};

const VCPUS: usize = 4;

/// One vCPU of the naive model.
#[derive(Clone, Default)]
struct Model {
    is_enabled: bool,
    is_x2: bool,
    logical: u32,
    is_cluster: bool,
    task: u8,
    requested: BTreeSet<u8>,
    service: BTreeSet<u8>,
    levels: BTreeSet<u8>,
}

impl Model {
    fn selected(&self, id: u32, destination: Destination) -> bool {
        match destination {
            Destination::All => true,
            Destination::Physical(wanted) => wanted == id,
            Destination::Logical(mask) if self.is_x2 => mask >> 16 == 0 && mask & 1 << id != 0,
            Destination::Logical(mask) if self.is_cluster => {
                let cluster = mask >> 4;
                (cluster == 15 || cluster == self.logical >> 4) && mask & self.logical & 15 != 0
            }
            Destination::Logical(mask) => mask < 0x100 && mask & self.logical != 0,
        }
    }

    fn accept(&mut self, vector: u8, trigger: Trigger) {
        if self.is_enabled {
            self.requested.insert(vector);
            if trigger == Trigger::Level {
                self.levels.insert(vector);
            } else {
                self.levels.remove(&vector);
            }
        }
    }

    fn priority(&self) -> u8 {
        let service = self.service.last().copied().unwrap_or(0);
        if self.task >> 4 >= service >> 4 { self.task } else { service & 0xf0 }
    }

    fn pending(&self) -> Option<u8> {
        self.requested.last().copied().filter(|vector| vector >> 4 > self.priority() >> 4)
    }
}

/// What a guest or its devices do next.
#[derive(Clone, Debug)]
enum Step {
    Device { destination: Destination, vector: u8, trigger: Trigger },
    Command { from: usize, shorthand: u32, is_logical: bool, destination: u32, vector: u8 },
    Task { vcpu: usize, value: u8 },
    Take { vcpu: usize },
    End { vcpu: usize },
    Enable { vcpu: usize, on: bool },
    Logical { vcpu: usize, id: u8 },
    Clusters { vcpu: usize, on: bool },
    X2Apic { vcpu: usize },
}

fn destinations() -> impl Strategy<Value = Destination> {
    prop_oneof![
        (0u32..6).prop_map(Destination::Physical),
        (0u32..0x100).prop_map(Destination::Logical),
        Just(Destination::All),
    ]
}

fn vectors() -> impl Strategy<Value = u8> {
    prop_oneof![Just(16u8), Just(31), Just(32), Just(0x7f), Just(0x80), Just(255), 16u8..=255]
}

fn steps() -> impl Strategy<Value = Step> {
    let vcpu = 0..VCPUS;
    let trigger = prop_oneof![Just(Trigger::Edge), Just(Trigger::Level)];
    prop_oneof![
        4 => (destinations(), vectors(), trigger)
            .prop_map(|(destination, vector, trigger)| Step::Device { destination, vector, trigger }),
        4 => (vcpu.clone(), 0u32..4, any::<bool>(), prop_oneof![0u32..6, 0u32..0x100], vectors()).prop_map(
            |(from, shorthand, is_logical, destination, vector)| {
                Step::Command { from, shorthand, is_logical, destination, vector }
            }
        ),
        2 => (vcpu.clone(), any::<u8>()).prop_map(|(vcpu, value)| Step::Task { vcpu, value: value & 0x7f }),
        6 => vcpu.clone().prop_map(|vcpu| Step::Take { vcpu }),
        4 => vcpu.clone().prop_map(|vcpu| Step::End { vcpu }),
        1 => (vcpu.clone(), prop::bool::weighted(0.8)).prop_map(|(vcpu, on)| Step::Enable { vcpu, on }),
        1 => (vcpu.clone(), any::<u8>()).prop_map(|(vcpu, id)| Step::Logical { vcpu, id }),
        1 => (vcpu.clone(), any::<bool>()).prop_map(|(vcpu, on)| Step::Clusters { vcpu, on }),
        1 => vcpu.prop_map(|vcpu| Step::X2Apic { vcpu }),
    ]
}

struct Pair {
    machine: Vec<LocalApic>,
    models: Vec<Model>,
}

impl Pair {
    fn new() -> Self {
        let logical = |vcpu: usize| 1 << vcpu;
        Self {
            machine: enabled(VCPUS),
            models: (0..VCPUS)
                .map(|vcpu| Model { is_enabled: true, logical: logical(vcpu), ..Model::default() })
                .collect(),
        }
    }

    fn write(&mut self, vcpu: usize, register: u8, value: u32) -> Effect {
        let apic = &mut self.machine[vcpu];
        if apic.is_x2apic() {
            apic.write_x2apic(register, value.into(), 0).unwrap()
        } else {
            apic.write(register, value, 0)
        }
    }

    fn spread(&mut self, destination: Destination, vector: u8, trigger: Trigger) {
        for (id, model) in (0..).zip(&mut self.models) {
            if model.selected(id, destination) {
                model.accept(vector, trigger);
            }
        }
    }

    fn command(&mut self, from: usize, shorthand: u32, is_logical: bool, destination: u32, vector: u8) {
        let low = shorthand << 18 | u32::from(is_logical) << 11 | u32::from(vector);
        let is_x2 = self.models[from].is_x2;
        let _ = if is_x2 {
            let command = u64::from(destination) << 32 | u64::from(low);
            self.machine[from].write_x2apic(reg::COMMAND, command, 0).unwrap()
        } else {
            let _ = self.write(from, reg::COMMAND_HIGH, destination << 24);
            self.write(from, reg::COMMAND, low)
        };
        let named = match (is_logical, destination) {
            (true, mask) => Destination::Logical(mask),
            (false, 0xff) if !is_x2 => Destination::All,
            (false, id) => Destination::Physical(id),
        };
        for (index, model) in self.models.iter_mut().enumerate() {
            let is_target = match shorthand {
                0 => model.selected(u32::try_from(index).unwrap(), named),
                1 => index == from,
                2 => true,
                _ => index != from,
            };
            if is_target {
                model.accept(vector, Trigger::Edge);
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Device { destination, vector, trigger } => {
                let message = Message { destination, delivery: Delivery::Fixed, vector, trigger };
                let _ = self.machine[0].apics().send(message).look;
                self.spread(destination, vector, trigger);
            }
            Step::Command { from, shorthand, is_logical, destination, vector } => {
                self.command(from, shorthand, is_logical, destination, vector);
            }
            Step::Task { vcpu, value } => {
                let _ = self.write(vcpu, reg::TASK_PRIORITY, value.into());
                self.models[vcpu].task = value;
            }
            Step::Take { vcpu } => self.take(vcpu),
            Step::End { vcpu } => {
                let effect = self.write(vcpu, reg::END_OF_INTERRUPT, 0);
                let model = &mut self.models[vcpu];
                let ended = model.service.pop_last().filter(|vector| model.levels.contains(vector));
                assert_eq!(effect, ended.map_or(Effect::Nothing, Effect::Ended));
            }
            Step::Enable { vcpu, on } => {
                let _ = self.write(vcpu, reg::SPURIOUS, if on { ENABLED } else { 0xff });
                self.models[vcpu].is_enabled = on;
            }
            Step::Logical { vcpu, id } if !self.models[vcpu].is_x2 => {
                let _ = self.write(vcpu, reg::LOGICAL_DESTINATION, u32::from(id) << 24);
                self.models[vcpu].logical = id.into();
            }
            Step::Clusters { vcpu, on } if !self.models[vcpu].is_x2 => {
                let _ = self.write(vcpu, reg::DESTINATION_FORMAT, if on { 0 } else { u32::MAX });
                self.models[vcpu].is_cluster = on;
            }
            Step::Logical { .. } | Step::Clusters { .. } => {}
            Step::X2Apic { vcpu } => {
                let base = self.machine[vcpu].base() | X2APIC;
                self.machine[vcpu].set_base(base).unwrap();
                self.models[vcpu].is_x2 = true;
            }
        }
    }

    fn take(&mut self, vcpu: usize) {
        self.machine[vcpu].absorb();
        let (apic, model) = (&mut self.machine[vcpu], &mut self.models[vcpu]);
        if let Some(vector) = model.pending() {
            assert_eq!(apic.acknowledge(), vector);
            assert!(model.requested.remove(&vector));
            model.service.insert(vector);
        } else {
            assert_eq!(apic.acknowledge(), 0xff);
        }
    }

    fn check(&mut self) {
        for (apic, model) in self.machine.iter_mut().zip(&self.models) {
            apic.absorb();
            assert_eq!(apic.pending(), model.pending());
            assert_eq!(apic.highest_requested(), model.requested.last().copied().unwrap_or(0));
            assert_eq!(apic.highest_in_service(), model.service.last().copied().unwrap_or(0));
            let words = |set: &BTreeSet<u8>| set.iter().fold(0, |words, vector| words | 1u8 << (vector >> 5));
            assert_eq!(apic.requested, words(&model.requested), "no empty word is looked at");
            assert_eq!(apic.in_service, words(&model.service), "no empty word is looked at");
            let banks = [
                (reg::REQUEST, &model.requested),
                (reg::IN_SERVICE, &model.service),
                (reg::TRIGGER_MODE, &model.levels),
            ];
            for (first, set) in banks {
                assert_eq!(&bank(apic, first), set);
            }
        }
    }
}

fn bank(apic: &LocalApic, first: u8) -> BTreeSet<u8> {
    let has = |vector: u8| apic.page().get(first + (vector >> 5)) >> (vector & 31) & 1 != 0;
    (0..=u8::MAX).filter(|&vector| has(vector)).collect()
}

/// What must hold whatever a guest wrote.
fn check_invariants(apic: &mut LocalApic) {
    apic.absorb();
    for first in [reg::REQUEST, reg::IN_SERVICE, reg::TRIGGER_MODE] {
        assert_eq!(apic.page().get(first) & 0xffff, 0, "no illegal vector in bank {first:#x}");
    }
    assert_eq!(apic.highest_requested(), bank(apic, reg::REQUEST).last().copied().unwrap_or(0));
    assert_eq!(apic.highest_in_service(), bank(apic, reg::IN_SERVICE).last().copied().unwrap_or(0));
    if let Some(vector) = apic.pending() {
        assert!(vector >> 4 > apic.cr8() && vector >> 4 > apic.highest_in_service() >> 4);
    }
}

fn interesting() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        any::<u32>().prop_map(u64::from),
        (0u32..64).prop_map(|bit| 1 << bit),
        (0u64..0x1_0000).prop_map(|low| low & 0xcfff),
        (0u64..4, 0u64..0x1000).prop_map(|(to, low)| to << 32 | low),
        (0u64..4, 0u64..0x1000).prop_map(|(to, low)| to << 18 | low),
    ]
}

fn registers() -> impl Strategy<Value = u8> {
    prop_oneof![3 => 0u8..0x40, 1 => any::<u8>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_local_apics_agree_with_the_model(steps in prop::collection::vec(steps(), 1..120)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
            pair.check();
        }
    }

    #[test]
    fn no_sequence_of_registers_breaks_a_rule(
        features in any::<u8>(),
        hardware in any::<bool>(),
        steps in prop::collection::vec((0usize..3, 0u8..12, registers(), interesting(), any::<u32>()), 1..200),
    ) {
        let owner = if hardware { Owner::Hardware } else { Owner::Software };
        let setup = Setup { features: Features::from_bits_truncate(features), owner, ..setup() };
        let apics = Arc::new(Apics::new(3));
        let mut machine: Vec<_> = (0..3)
            .map(|vcpu| LocalApic::new(vcpu, Box::leak(Box::new(Page::new())), Arc::clone(&apics), setup))
            .collect();
        let mut now = 0u64;
        for (vcpu, what, register, value, later) in steps {
            now = now.saturating_add(later.into());
            let apic = &mut machine[vcpu];
            let word = u32::try_from(value & 0xffff_ffff).unwrap();
            match what {
                0..3 => { let _ = apic.write(register, word, now); }
                3 => { let _ = apic.write_x2apic(register, value, now); }
                4 => { let _ = apic.read_x2apic(register, now); }
                5 => { let _ = apic.read(register, now); }
                6 => { let _ = apic.access(value, Access::Read(Width::Double), now); }
                7 => { let _ = apic.set_base([XAPIC, X2APIC, 0xfee0_0000, value][usize::from(register % 4)]); }
                8 => { apic.absorb(); let _ = apic.acknowledge(); }
                9 => { let _ = apic.set_cr8(value); let _ = apics.set_intr(value & 1 != 0); }
                10 => { apic.set_tsc_offset(value, now); apic.set_tsc_deadline(now.wrapping_add(word.into()), now); }
                _ => { let _ = apic.write(reg::SPURIOUS, ENABLED, now); }
            }
            apic.expire(now);
            prop_assert!(apic.deadline().is_none_or(|at| at > now) || !apic.expire(now));
            check_invariants(apic);
        }
    }
}

/// Devices and vCPUs send while the receiver absorbs, which it does only when it was told. Each sender waits for its own
/// vector to be delivered before it sends it again, so a lost one would hang and a doubled one would be counted.
#[test]
fn what_is_sent_while_a_vcpu_absorbs_is_delivered_exactly_once() {
    const SENDERS: usize = 4;
    const ROUNDS: u32 = if cfg!(miri) { 20 } else { 3000 };
    /// All in one word, so that senders meet.
    const FIRST: u8 = 0x41;
    let mut machine = enabled(1);
    let apics = Arc::clone(machine[0].apics());
    let told = AtomicBool::new(false);
    let delivered: Vec<AtomicU32> = (0..SENDERS).map(|_| AtomicU32::new(0)).collect();
    thread::scope(|scope| {
        for (vector, count) in (FIRST..).zip(&delivered) {
            let (apics, told) = (&apics, &told);
            scope.spawn(move || {
                let trigger = if vector & 1 == 0 { Trigger::Level } else { Trigger::Edge };
                let destination = Destination::Physical(0);
                for round in 1..=ROUNDS {
                    if apics
                        .send(Message { destination, delivery: Delivery::Fixed, vector, trigger })
                        .look
                        .has(0)
                    {
                        told.store(true, Ordering::SeqCst);
                    }
                    while count.load(Ordering::Acquire) < round {
                        thread::yield_now();
                    }
                }
            });
        }
        let mut left = ROUNDS * u32::try_from(SENDERS).unwrap();
        while left > 0 {
            if !told.swap(false, Ordering::SeqCst) {
                thread::yield_now();
                continue;
            }
            machine[0].absorb();
            while let Some(vector) = machine[0].pending() {
                machine[0].take(vector);
                let is_level = vector & 1 == 0;
                assert_eq!(machine[0].eoi(), is_level.then_some(vector));
                left -= 1;
                delivered[usize::from(vector - FIRST)].fetch_add(1, Ordering::Release);
            }
        }
    });
    assert!(delivered.iter().all(|count| count.load(Ordering::Relaxed) == ROUNDS));
    assert!(!machine[0].wakes());
}
