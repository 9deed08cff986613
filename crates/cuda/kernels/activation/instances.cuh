// Written by `cargo xtask kernels` from the family's table in core: do not edit.
#pragma once

// FORM(name, type in functions.cuh, clamp, whether rows are interleaved)
#define FORMS(FORM) \
    FORM(silu_none_concatenated, Silu, None, false) \
    FORM(silu_before_concatenated, Silu, Before, false) \
    FORM(gelu_none_concatenated, Gelu, None, false) \
    FORM(gelu_tanh_none_concatenated, GeluTanh, None, false) \
    FORM(silu_alpha_none_concatenated, SiluAlpha, None, false) \
    FORM(fatrelu_none_concatenated, Fatrelu, None, false) \
    FORM(silu_alpha_before_interleaved, SiluAlpha, Before, true) \
    FORM(silu_alpha_before_concatenated, SiluAlpha, Before, false) \
    FORM(silu_after_concatenated, Silu, After, false) \
    FORM(situ_none_concatenated, Situ, None, false)

// Of these there are kernels besides that are tuned for DeepSeek's models.
#define TUNED_FORMS(FORM) \
    FORM(silu_none_concatenated, Silu, None, false) \
    FORM(silu_before_concatenated, Silu, Before, false)
