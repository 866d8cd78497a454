// The vector registers of a guest, out of the CPU and back. Bulkhead itself is built without floating point.

    .arch_extension fp
    .arch_extension simd

    .macro each_quad op
    \op     q0, q1, [x0]
    \op     q2, q3, [x0, #32]
    \op     q4, q5, [x0, #64]
    \op     q6, q7, [x0, #96]
    \op     q8, q9, [x0, #128]
    \op     q10, q11, [x0, #160]
    \op     q12, q13, [x0, #192]
    \op     q14, q15, [x0, #224]
    \op     q16, q17, [x0, #256]
    \op     q18, q19, [x0, #288]
    \op     q20, q21, [x0, #320]
    \op     q22, q23, [x0, #352]
    \op     q24, q25, [x0, #384]
    \op     q26, q27, [x0, #416]
    \op     q28, q29, [x0, #448]
    \op     q30, q31, [x0, #480]
    .endm

// x0 = 512 bytes
    .section .text.floating, "ax"
    .global bulkhead_save_simd
bulkhead_save_simd:
    each_quad stp
    ret

    .global bulkhead_load_simd
bulkhead_load_simd:
    each_quad ldp
    ret

    .arch_extension sve

    .macro each_vector op
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \op     z\n, [x0, #\n, mul vl]
    .endr
    .endm

    .macro each_predicate op
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    \op     p\n, [x1, #\n, mul vl]
    .endr
    .endm

// x0 = 32 vectors, x1 = 16 predicates, then the first-fault register as a 17th
    .global bulkhead_save_sve
bulkhead_save_sve:
    each_vector str
    each_predicate str
    rdffr   p0.b
    str     p0, [x1, #16, mul vl]
    ret

    .global bulkhead_load_sve
bulkhead_load_sve:
    each_vector ldr
    ldr     p0, [x1, #16, mul vl]
    wrffr   p0.b
    each_predicate ldr
    ret

    .global bulkhead_vector_bytes
bulkhead_vector_bytes:
    rdvl    x0, #1
    ret
