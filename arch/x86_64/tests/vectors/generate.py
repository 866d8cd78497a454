#!/usr/bin/env python3
"""Makes instructions.txt: random instructions with an operand in device registers, and what an independent CPU makes of them.

Needs the Python package `unicorn`. Run it here: python3 generate.py [COUNT] [SEED] > instructions.txt. Behind COUNT of all kinds
come a tenth as many string comparisons.

Each line: bits, instruction, address of the first access and r or w, registers that are not pseudo-random (number=value), and a
checksum of everything afterwards. src/mmio/tests.rs starts from the same state and has to come to the same checksum.
"""
import random
import sys

from unicorn import Uc, UcError, UC_ARCH_X86, UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE, UC_MODE_16, UC_MODE_32, UC_MODE_64
from unicorn import x86_const as x

CODE, RAM, DEVICE = 0x1000, 0x2000, 0x9000
WINDOW = 0x200                      # bytes of RAM and of the device that count
SEGMENTS = [0x20, 0x10, 0x30, 0x40, 0x50, 0x60]  # es cs ss ds fs gs in real mode
FLAGS = 0x8d5
MASK = (1 << 64) - 1

R64 = [x.UC_X86_REG_RAX, x.UC_X86_REG_RCX, x.UC_X86_REG_RDX, x.UC_X86_REG_RBX, x.UC_X86_REG_RSP, x.UC_X86_REG_RBP,
       x.UC_X86_REG_RSI, x.UC_X86_REG_RDI, x.UC_X86_REG_R8, x.UC_X86_REG_R9, x.UC_X86_REG_R10, x.UC_X86_REG_R11,
       x.UC_X86_REG_R12, x.UC_X86_REG_R13, x.UC_X86_REG_R14, x.UC_X86_REG_R15]
R32 = [x.UC_X86_REG_EAX, x.UC_X86_REG_ECX, x.UC_X86_REG_EDX, x.UC_X86_REG_EBX, x.UC_X86_REG_ESP, x.UC_X86_REG_EBP,
       x.UC_X86_REG_ESI, x.UC_X86_REG_EDI]
SEGMENT_REGISTERS = [x.UC_X86_REG_ES, x.UC_X86_REG_CS, x.UC_X86_REG_SS, x.UC_X86_REG_DS, x.UC_X86_REG_FS, x.UC_X86_REG_GS]


def mix(seed):
    """SplitMix64's output for one state."""
    z = (seed + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def content(seed, start):
    return b"".join(mix(seed ^ (start + i)).to_bytes(8, "little") for i in range(0, WINDOW, 8))


def checksum(words, *blocks):
    total = 0xCBF29CE484222325
    for byte in b"".join(word.to_bytes(8, "little") for word in words) + b"".join(blocks):
        total = ((total ^ byte) * 0x100000001B3) & MASK
    return total


def alu_opcodes():
    for group in range(8):
        base = group * 8
        for low in range(4):
            yield bytes([base + low]), None, 0
        for opcode, size in ((0x80, 1), (0x81, "z"), (0x83, 1)):
            yield bytes([opcode]), group, size


FORMS = list(alu_opcodes()) + [(bytes([op]), None, 0) for op in (0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8B)] + [
    (b"\xc6", 0, 1), (b"\xc7", 0, "z"), (b"\xf6", 0, 1), (b"\xf7", 0, "z"), (b"\xf6", 2, 0), (b"\xf7", 2, 0),
    (b"\xf6", 3, 0), (b"\xf7", 3, 0), (b"\xfe", 0, 0), (b"\xfe", 1, 0), (b"\xff", 0, 0), (b"\xff", 1, 0),
    (b"\x0f\xb6", None, 0), (b"\x0f\xb7", None, 0), (b"\x0f\xbe", None, 0), (b"\x0f\xbf", None, 0),
    (b"\x0f\xb0", None, 0), (b"\x0f\xb1", None, 0), (b"\x0f\xc0", None, 0), (b"\x0f\xc1", None, 0),
    (b"\x0f\xa3", None, 0), (b"\x0f\xab", None, 0), (b"\x0f\xb3", None, 0), (b"\x0f\xbb", None, 0),
] + [(b"\x0f\xba", group, 1) for group in (4, 5, 6, 7)]
BIT_TESTS = (b"\x0f\xa3", b"\x0f\xab", b"\x0f\xb3", b"\x0f\xbb", b"\x0f\xba")
STRINGS = [0xA4, 0xA5, 0xAA, 0xAB, 0xAC, 0xAD]
COMPARISONS = [0xA6, 0xA7, 0xAE, 0xAF]


def segment_base(bits, number):
    return SEGMENTS[number] * 16 if bits == 16 else 0


def with_operand(rng, bits, fixed):
    """A ModRM instruction whose operand is in the device."""
    opcode, group, immediate = rng.choice(FORMS)
    if bits == 64 and rng.random() < 0.06:
        opcode, group, immediate = b"\x63", None, 0
    target = DEVICE + rng.randrange(0x40, WINDOW - 0x40)
    prefix, rex, operand_half = b"", 0, bits == 16
    if rng.random() < 0.25:
        prefix, operand_half = b"\x66", bits != 16
    segment = 3
    if rng.random() < 0.15:
        segment = rng.choice([0, 2, 3, 4, 5])
        prefix = bytes([{0: 0x26, 2: 0x36, 3: 0x3E, 4: 0x64, 5: 0x65}[segment]]) + prefix
        if bits == 64 and segment < 4:
            segment = 3
        overridden = True
    else:
        overridden = False
    # Not NEG: this CPU's LOCK NEG gets CF wrong.
    locks = opcode[0] in (0x86, 0x87) or group in (0, 1, 2) and opcode[0] in (0xF6, 0xF7, 0xFE, 0xFF)
    if locks and not (opcode[0] in (0xF6, 0xF7) and group == 0) and rng.random() < 0.2:
        prefix += b"\xf0"
    if bits == 64 and rng.random() < 0.5:
        rex = 0x40 | rng.randrange(16)
    address_half = bits == 16
    if rng.random() < 0.1 and bits != 16:
        prefix = b"\x67" + prefix
        if bits == 32:
            address_half = True
    field = group if group is not None else rng.randrange(8)
    # The index of a bit test by register reaches far: keep it small.
    if opcode in BIT_TESTS[:4]:
        number = field | (8 if rex & 4 else 0)
        if number in (4, 5):
            return None
        fixed[number] = rng.randrange(-256, 256) & MASK
    wanted = target - segment_base(bits, segment)
    if address_half:
        tail = operand_16(rng, bits, field, wanted, overridden, segment, fixed)
    else:
        tail = operand_32(rng, bits, field, wanted, rex, overridden, segment, fixed, b"\x67" in prefix)
    if tail is None:
        return None
    size = immediate if immediate != "z" else (2 if operand_half and not rex & 8 else 4)
    constant = bytes(rng.randrange(256) for _ in range(size))
    if opcode == b"\x0f\xba":
        constant = bytes([rng.randrange(256)])
    return prefix + (bytes([rex]) if rex else b"") + opcode + tail + constant


def operand_16(rng, bits, field, wanted, overridden, segment, fixed):
    mode, low = rng.choice([(0, 4), (0, 5), (0, 6), (0, 7), (1, 4), (2, 5), (2, 7), (1, 0), (0, 0), (0, 1)])
    if mode == 0 and low == 6:
        return bytes([field << 3 | 6]) + (wanted & 0xFFFF).to_bytes(2, "little")
    displacement = 0 if mode == 0 else rng.randrange(-100, 100)
    registers = {0: (3, 6), 1: (3, 7), 4: (6,), 5: (7,), 7: (3,)}[low]
    rest = wanted - displacement
    if any(number in fixed for number in registers):
        return None
    if len(registers) == 2:
        fixed[registers[1]] = rng.randrange(0x1000)
        rest -= fixed[registers[1]]
    fixed[registers[0]] = rest & 0xFFFF
    tail = b"" if mode == 0 else (displacement & (0xFF if mode == 1 else 0xFFFF)).to_bytes(mode, "little")
    return bytes([mode << 6 | field << 3 | low]) + tail


def operand_32(rng, bits, field, wanted, rex, overridden, segment, fixed, cut):
    mode, low = rng.randrange(3), rng.randrange(8)
    base_extension, index_extension = (8 if rex & 1 else 0), (8 if rex & 2 else 0)
    width = 64 if bits == 64 and not cut else 32
    displacement = 0 if mode == 0 else rng.randrange(-100, 100)
    rest, sib = wanted - displacement, b""
    base = low | base_extension
    if low == 4:
        scale, index, base_low = rng.randrange(4), rng.randrange(8), rng.randrange(8)
        sib = bytes([scale << 6 | index << 3 | base_low])
        base = base_low | base_extension
        if index | index_extension != 4:
            number = index | index_extension
            if number == base or number in fixed:
                return None
            fixed[number] = rng.randrange(0x100000) if bits == 64 else rng.randrange(0x1000)
            rest -= fixed[number] << scale
        if mode == 0 and base_low == 5:
            return bytes([field << 3 | 4]) + sib + (rest & 0xFFFFFFFF).to_bytes(4, "little")
    elif mode == 0 and low == 5:
        if bits == 64:
            return None
        return bytes([field << 3 | 5]) + (rest & 0xFFFFFFFF).to_bytes(4, "little")
    if base in (4, 5) and not overridden and bits == 16 or base in fixed:
        return None
    fixed[base] = rest & ((1 << width) - 1)
    tail = b"" if mode == 0 else (displacement & (0xFF if mode == 1 else 0xFFFFFFFF)).to_bytes(1 if mode == 1 else 4, "little")
    return bytes([mode << 6 | field << 3 | low]) + sib + tail


def moffs(rng, bits):
    address = (DEVICE + rng.randrange(0x40, WINDOW - 0x40)) - segment_base(bits, 3)
    rex = bytes([0x48]) if bits == 64 and rng.random() < 0.3 else b""
    prefix = b"\x66" if rng.random() < 0.2 else b""
    return prefix + rex + bytes([rng.randrange(0xA0, 0xA4)]) + address.to_bytes(bits // 8, "little")


def string(rng, bits, fixed, opcodes=STRINGS):
    opcode, repeat = rng.choice(opcodes), rng.random() < 0.5
    kind = opcode & 0xFE
    device, ram = (DEVICE + rng.randrange(0x40, 0x180)), RAM + rng.randrange(0x40, 0x180)
    source, target = rng.choice([(device, ram), (ram, device), (device, device)])
    source = device if kind == 0xAC else source
    target = device if kind in (0xAA, 0xAE) else target
    fixed[6] = source - segment_base(bits, 3)
    fixed[7] = target - segment_base(bits, 0)
    if bits == 64:
        fixed[6], fixed[7] = fixed[6] & MASK, fixed[7] & MASK
    fixed[1] = rng.randrange(1, 5)
    prefix = rng.choice([b"\xf3", b"\xf2"]) if repeat else b""
    if rng.random() < 0.2:
        prefix += b"\x66"
    if bits == 64 and rng.random() < 0.2:
        prefix = b"\x67" + prefix
    rex = b"\x48" if bits == 64 and rng.random() < 0.3 else b""
    return prefix + rex + bytes([opcode])


def run(bits, code, seed, fixed):
    """The checksum and the first access to the device, or nothing if the instruction does not do what it was made for."""
    engine = Uc(UC_ARCH_X86, {16: UC_MODE_16, 32: UC_MODE_32, 64: UC_MODE_64}[bits])
    engine.mem_map(0, 0x10000)
    engine.mem_write(CODE, code)
    engine.mem_write(RAM, content(seed, RAM))
    engine.mem_write(DEVICE, content(seed, DEVICE))
    names = R64 if bits == 64 else R32
    for number, name in enumerate(names):
        value = fixed.get(number, mix(seed ^ number))
        engine.reg_write(name, value if bits == 64 else value & 0xFFFFFFFF)
    if bits == 16:
        for name, value in zip(SEGMENT_REGISTERS, SEGMENTS):
            engine.reg_write(name, value)
    flags = 2 | mix(seed ^ 0x100) & (FLAGS | 0x400)
    engine.reg_write(x.UC_X86_REG_EFLAGS, flags)
    accesses = []

    def seen(_engine, access, address, size, _value, _data):
        accesses.append((access, address, size))

    engine.hook_add(UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, seen)
    try:
        engine.emu_start(CODE, CODE + len(code), count=8)
    except UcError:
        return None
    inside = [a for a in accesses if DEVICE <= a[1] < DEVICE + WINDOW]
    outside = [a for a in accesses if not (DEVICE <= a[1] < DEVICE + WINDOW - 8 or RAM <= a[1] < RAM + WINDOW - 8)]
    if not inside or outside:
        return None
    flags = engine.reg_read(x.UC_X86_REG_EFLAGS) & FLAGS
    if any(code_has(code, opcode) for opcode in BIT_TESTS):
        flags &= 0x41
    words = [engine.reg_read(name) for name in names] + [flags]
    total = checksum(words, engine.mem_read(RAM, WINDOW), engine.mem_read(DEVICE, WINDOW))
    return inside[0][1], inside[0][0] == 17, total


def code_has(code, opcode):
    index = code.find(b"\x0f")
    return index >= 0 and code[index:index + 2] == opcode


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 800
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    made = 0
    # Comparisons come behind the others.
    while made < count + count // 10:
        bits, seed, fixed = rng.choice([16, 32, 64, 64]), rng.getrandbits(32), {}
        choice = rng.random()
        if made >= count:
            code = string(rng, bits, fixed, COMPARISONS)
        elif choice < 0.8:
            code = with_operand(rng, bits, fixed)
        elif choice < 0.88:
            code = moffs(rng, bits)
        else:
            code = string(rng, bits, fixed)
        result = code and run(bits, code, seed, fixed)
        if not result:
            continue
        address, is_write, total = result
        registers = ",".join(f"{number:x}={value:x}" for number, value in sorted(fixed.items())) or "-"
        print(bits, code.hex(), f"{seed:x}", f"{address:x}", "w" if is_write else "r", registers, f"{total:016x}")
        made += 1


if __name__ == "__main__":
    main()
