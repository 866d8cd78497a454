//! What each register gives and takes, in both modes.

use super::*;

/// SDM Vol. 3A, 11.4.7.1.
#[test]
fn registers_are_as_after_power_on() {
    let mut apic = fresh(2).remove(1);
    let values = [
        (reg::ID, 1 << 24),
        (reg::VERSION, 0x0106_0014),
        (reg::TASK_PRIORITY, 0),
        (reg::PROCESSOR_PRIORITY, 0),
        (reg::LOGICAL_DESTINATION, 0),
        (reg::DESTINATION_FORMAT, u32::MAX),
        (reg::SPURIOUS, 0xff),
        (reg::ERROR_STATUS, 0),
        (reg::COMMAND, 0),
        (reg::COMMAND_HIGH, 0),
        (reg::INITIAL_COUNT, 0),
        (reg::CURRENT_COUNT, 0),
        (reg::DIVIDE, 0),
    ];
    for (register, value) in values {
        assert_eq!(apic.read(register, 0), value, "register {register:#x}");
    }
    for register in [reg::LVT_CMCI].into_iter().chain(reg::LVT_TIMER..=reg::LVT_ERROR) {
        assert_eq!(apic.read(register, 0), MASKED, "register {register:#x}");
    }
    for register in reg::IN_SERVICE..reg::ERROR_STATUS {
        assert_eq!(apic.read(register, 0), 0, "register {register:#x}");
    }
    assert_eq!(errors(&mut apic), 0);
    assert_eq!(apic.deadline(), None);
}

#[test]
fn the_version_names_what_the_guest_was_told() {
    let apics = Arc::new(Apics::new(1));
    let version = |features| {
        let mut apic = made(0, &apics, Setup { features, ..setup() });
        apic.read(reg::VERSION, 0)
    };
    assert_eq!(version(Features::empty()), 0x0005_0014);
    assert_eq!(version(Features::CMCI), 0x0006_0014);
    assert_eq!(version(Features::EOI_SUPPRESSION), 0x0105_0014);
}

/// SDM Vol. 3A, figure 11-8.
#[test]
fn local_vectors_have_the_manuals_bits() {
    let mut apic = one();
    let entries = [
        (reg::LVT_CMCI, 0x1_07ff),
        (reg::LVT_TIMER, 0x7_00ff),
        (reg::LVT_THERMAL, 0x1_07ff),
        (reg::LVT_PERFORMANCE, 0x1_07ff),
        (reg::LVT_LINT0, 0x1_a7ff),
        (reg::LVT_LINT1, 0x1_a7ff),
        (reg::LVT_ERROR, 0x1_00ff),
    ];
    for (register, bits) in entries {
        let _ = apic.write(register, u32::MAX, 0);
        assert_eq!(apic.read(register, 0), bits, "register {register:#x}");
        let _ = apic.write(register, 0, 0);
        assert_eq!(apic.read(register, 0), 0, "register {register:#x}");
    }
}

#[test]
fn entries_and_bits_that_the_guest_was_not_told_of_are_not_there() {
    let apics = Arc::new(Apics::new(1));
    let mut apic = made(0, &apics, Setup { features: Features::X2APIC, ..setup() });
    let _ = apic.write(reg::SPURIOUS, u32::MAX, 0);
    assert_eq!(apic.read(reg::SPURIOUS, 0), 0x3ff);
    let _ = apic.write(reg::LVT_TIMER, u32::MAX, 0);
    assert_eq!(apic.read(reg::LVT_TIMER, 0), 0x3_00ff);
    assert_eq!(apic.read(reg::LVT_CMCI, 0), 0);
    assert_eq!(errors(&mut apic), 0x80);
    apic.set_base(X2APIC).unwrap();
    assert_eq!(apic.read_x2apic(reg::LVT_CMCI, 0), Err(Refused));
    assert_eq!(apic.write_x2apic(reg::LVT_TIMER, 1 << 18, 0), Err(Refused));
    assert_eq!(apic.write_x2apic(reg::SPURIOUS, 0x11ff, 0), Err(Refused));
}

/// SDM Vol. 3A, 11.4.7.2.
#[test]
fn software_disable_masks_the_table_and_lets_go_on_what_was_accepted() {
    let mut machine = enabled(2);
    let _ = machine[0].write(reg::LVT_TIMER, 0x40, 0);
    let _ = send(&mut machine[0], 0, 0x50);
    let _ = machine[0].write(reg::SPURIOUS, 0xff, 0);
    assert_eq!(machine[0].read(reg::LVT_TIMER, 0), MASKED | 0x40);
    let _ = machine[0].write(reg::LVT_TIMER, 0x41, 0);
    assert_eq!(machine[0].read(reg::LVT_TIMER, 0), MASKED | 0x41, "the mask cannot be cleared");
    assert_eq!(machine[0].acknowledge(), 0x50);
    assert_eq!(machine[0].eoi(), None);
    assert_eq!(send(&mut machine[1], 0, 0x51), Effect::Nothing, "not accepted");
    assert_eq!(send(&mut machine[0], 0, 0x51), Effect::Nothing);
    assert_eq!(send(&mut machine[0], 1, 0x52), look(2), "it may still send");
    assert_eq!(send(&mut machine[1], 0, 0x400), look(1), "NMI is accepted");
    assert_eq!(send(&mut machine[1], 0, 0x500), Effect::SwitchOff(VcpuSet(1)));
    assert_eq!(takers(&mut machine, 0x52), 2);
    let _ = machine[0].write(reg::SPURIOUS, ENABLED, 0);
    assert_eq!(machine[0].read(reg::LVT_TIMER, 0), MASKED | 0x41, "and stays");
}

#[test]
fn registers_that_can_only_be_read_stay() {
    let mut apic = enabled(2).remove(1);
    let fixed = [reg::ID, reg::VERSION, reg::PROCESSOR_PRIORITY, reg::CURRENT_COUNT]
        .into_iter()
        .chain(reg::IN_SERVICE..reg::ERROR_STATUS);
    for register in fixed {
        let before = apic.read(register, 0);
        assert_eq!(apic.write(register, u32::MAX, 0), Effect::Nothing);
        assert_eq!(apic.read(register, 0), before, "register {register:#x}");
    }
    assert_eq!(errors(&mut apic), 0);
}

/// SDM Vol. 3A, figure 11-9.
#[test]
fn an_address_without_a_register_is_an_error() {
    for register in [0x00, 0x01, 0x04, 0x29, 0x3a, 0x3f, 0x40, 0xff] {
        let mut apic = one();
        assert_eq!(apic.read(register, 0), 0);
        assert_eq!(errors(&mut apic), 0x80, "read of {register:#x}");
        let _ = apic.write(register, 0, 0);
        assert_eq!(errors(&mut apic), 0x80, "write of {register:#x}");
        assert_eq!(errors(&mut apic), 0);
        let _ = apic.write(reg::LVT_ERROR, 0x61, 0);
        let _ = apic.read(register, 0);
        assert_eq!(
            apic.highest_requested(),
            0x61,
            "a read requests the interrupt; whoever serves it has to see"
        );
    }
}

#[test]
fn illegal_vectors_are_errors_of_the_sender_or_the_receiver() {
    for vector in 0..16 {
        let mut machine = enabled(2);
        assert_eq!(send(&mut machine[0], 1, vector), Effect::Nothing);
        assert_eq!(errors(&mut machine[0]), 0x20);
        assert_eq!(send(&mut machine[0], 1, 0x100 | vector), Effect::Nothing, "lowest priority");
        assert_eq!(errors(&mut machine[0]), 0x20);
        let _ = machine[0].write(reg::LVT_TIMER, vector, 0);
        let _ = machine[0].write(reg::INITIAL_COUNT, 1, 0);
        assert!(machine[0].expire(HZ));
        assert_eq!(errors(&mut machine[0]), 0x40);
        let vector = u8::try_from(vector).unwrap();
        assert_eq!(machine[0].apics().send(fixed(Destination::Physical(1), vector)).look, VcpuSet(2));
        machine[1].absorb();
        assert_eq!(errors(&mut machine[1]), 0x40);
        machine[0].set_base(X2APIC).unwrap();
        assert_eq!(machine[0].write_x2apic(reg::SELF_IPI, vector.into(), 0), Ok(Effect::Nothing));
        let _ = machine[0].write_x2apic(reg::ERROR_STATUS, 0, 0);
        assert_eq!(machine[0].read_x2apic(reg::ERROR_STATUS, 0), Ok(0x20));
        assert!(machine.iter().all(|apic| apic.highest_requested() == 0));
    }
}

#[test]
fn an_error_interrupts_once_until_the_status_is_written() {
    let mut apic = one();
    let _ = apic.write(reg::LVT_ERROR, 0xfe, 0);
    let _ = apic.read(0x3a, 0);
    assert_eq!(apic.acknowledge(), 0xfe);
    assert_eq!(apic.eoi(), None);
    let _ = apic.read(0x3a, 0);
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.read(reg::ERROR_STATUS, 0), 0, "not latched yet");
    assert_eq!(errors(&mut apic), 0x80);
    let _ = apic.read(0x3a, 0);
    assert_eq!(apic.pending(), Some(0xfe));
    let mut apic = one();
    let _ = apic.write(reg::LVT_ERROR, 3, 0);
    let _ = apic.read(0x3a, 0);
    assert_eq!((errors(&mut apic), apic.highest_requested()), (0xc0, 0), "its own vector is illegal");
}

/// SDM Vol. 3A, table 11-6.
#[test]
fn x2apic_mode_has_the_manuals_registers_and_refuses_the_others() {
    let readable = |register| {
        matches!(register, 0x02 | 0x03 | 0x08 | 0x0a | 0x0d | 0x0f | 0x10..=0x28)
            || matches!(register, 0x2f | 0x30 | 0x32..=0x39 | 0x3e)
    };
    let writable =
        |register| matches!(register, 0x08 | 0x0b | 0x0f | 0x28 | 0x2f | 0x30 | 0x32..=0x38 | 0x3e | 0x3f);
    for register in 0..=u8::MAX {
        let mut apic = enabled_x2(1).remove(0);
        assert_eq!(apic.read_x2apic(register, 0).is_ok(), readable(register), "read of {register:#x}");
        assert_eq!(apic.write_x2apic(register, 0, 0).is_ok(), writable(register), "write of {register:#x}");
        let mut apic = one();
        assert_eq!(apic.read_x2apic(register, 0), Err(Refused), "in xAPIC mode");
        assert_eq!(apic.write_x2apic(register, 0, 0), Err(Refused), "in xAPIC mode");
    }
}

#[test]
fn x2apic_mode_refuses_reserved_bits() {
    let refused = [
        (reg::TASK_PRIORITY, 0x100),
        (reg::END_OF_INTERRUPT, 1),
        (reg::SPURIOUS, 0x400),
        (reg::ERROR_STATUS, 1),
        (reg::COMMAND, 1 << 13),
        (reg::COMMAND, 1 << 16),
        (reg::COMMAND, 1 << 20),
        (reg::LVT_TIMER, 1 << 8),
        (reg::LVT_LINT0, 1 << 17),
        (reg::LVT_ERROR, 1 << 8),
        (reg::INITIAL_COUNT, 1 << 32),
        (reg::DIVIDE, 4),
        (reg::SELF_IPI, 0x100),
    ];
    let mut apic = enabled_x2(1).remove(0);
    for (register, value) in refused {
        assert_eq!(apic.write_x2apic(register, value, 0), Err(Refused), "{value:#x} to {register:#x}");
    }
    assert_eq!(
        apic.write_x2apic(reg::LVT_LINT0, 0x1_5000, 0),
        Ok(Effect::Nothing),
        "read-only bits are no fault"
    );
    assert_eq!(apic.read_x2apic(reg::LVT_LINT0, 0), Ok(0x1_0000));
}

#[test]
fn the_command_register_is_64_bits_in_x2apic_mode() {
    let mut machine = enabled_x2(2);
    let command = 1 << 32 | 0x50;
    assert_eq!(machine[0].write_x2apic(reg::COMMAND, command, 0), Ok(look(2)));
    assert_eq!(machine[0].read_x2apic(reg::COMMAND, 0), Ok(command));
    assert_eq!(takers(&mut machine, 0x50), 2);
}
