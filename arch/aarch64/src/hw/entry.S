// The image's header and the two ways in: the loader's, and PSCI's for the other CPUs.
// Documentation/arch/arm64/booting of Linux; PSCI: DEN0022 6.4.

    .section .text.image, "ax"
    .global bulkhead_image
bulkhead_image:
    b       bulkhead_start
    .long   0
    .quad   0                               // text_offset: at a multiple of 2 MiB
    .quad   __image_bytes
    .quad   0xa                             // little endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

// Does `op` to each line of the data cache that our memory may be in. Uses x1 to x4.
    .macro  each_line op
    mrs     x1, ctr_el0
    ubfx    x1, x1, #16, #4                 // DminLine: words of the smallest line, as a power of 2
    mov     x2, #4
    lsl     x1, x2, x1
    adrp    x2, bulkhead_image
    add     x2, x2, :lo12:bulkhead_image
    adrp    x3, __bss_end
    add     x3, x3, :lo12:__bss_end
1:  dc      \op, x2
    add     x2, x2, x1
    cmp     x2, x3
    b.lo    1b
    dsb     sy
    .endm

// x0 = device tree. Translation and caches are off: until they are on, what we write goes to memory past the caches. A dirty line
// that was left in them could be evicted over it, so first there are none: by the boot protocol the loader cleaned its file, but
// not what lies behind it.
bulkhead_start:
    mrs     x20, cntpct_el0
    mov     x19, x0
    each_line civac
    adrp    x3, bulkhead_image
    add     x3, x3, :lo12:bulkhead_image
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
.Lrelocate:
    cmp     x1, x2
    b.hs    .Lclear
    ldp     x4, x5, [x1], #16
    ldr     x6, [x1], #8
    cmp     w5, #1027                       // R_AARCH64_RELATIVE, the only kind in a static image
    b.ne    .Lrelocate
    add     x6, x6, x3
    str     x6, [x3, x4]
    b       .Lrelocate
.Lclear:
    adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __bss_end
.Lclear_next:
    cmp     x1, x2
    b.hs    .Lcall
    stp     xzr, xzr, [x1], #16
    b       .Lclear_next
.Lcall:
    adrp    x1, {boot_stack}
    add     x1, x1, :lo12:{boot_stack}
    ldr     x2, ={stack_bytes}
    add     sp, x1, x2
    mov     x0, x19
    mov     x1, x20
    mov     x29, xzr
    mov     x30, xzr
    b       {boot}
    .ltorg

// x0 = the CPU's block (`Start`): translation is off, so it was written back to memory.
    .global bulkhead_secondary
bulkhead_secondary:
    mov     x19, x0
    bl      bulkhead_translate
    ldr     x1, [x19, #{start_stack}]
    mov     sp, x1
    mov     x0, x19
    mov     x29, xzr
    mov     x30, xzr
    b       {secondary}

// The same as below for the CPU that is alone and wrote memory past the caches: relocated pointers, zeros, stack, tables. All
// lines are clean since the start, but they may have been fetched before memory was written; dropping them loses nothing. Between
// here and the switch nothing is written.
    .global bulkhead_translate_first
bulkhead_translate_first:
    each_line ivac
    // On to `bulkhead_translate`.

// Switches translation on for the CPU whose block is in x0. Uses x1 to x4.
    .global bulkhead_translate
bulkhead_translate:
    ldp     x1, x2, [x0, #{start_hcr}]      // HCR_EL2, TTBR0_EL2
    msr     hcr_el2, x1
    isb
    msr     ttbr0_el2, x2
    ldp     x1, x2, [x0, #{start_tcr}]      // TCR_EL2, MAIR_EL2
    msr     tcr_el2, x1
    msr     mair_el2, x2
    ldp     x1, x2, [x0, #{start_vbar}]     // VBAR_EL2, SCTLR_EL2
    msr     vbar_el2, x1
    tlbi    alle2
    ic      iallu
    dsb     sy
    isb
    msr     sctlr_el2, x2
    isb
    ret
