//! What engines get wrong, as a table: the fault's name, what it makes of the definition, and what
//! data it takes to tell.
//!
//! A fault whose parameter is read off the output (another limit, a factor) is in
//! [`super::fitted`], and one of the rounding in [`super::finish::Finish`].

use swiglu::{Clamp, Function, GatedActivation, Layout, Limit};

use super::recipe::{Bounds, NanBecomes, Places, Recipe};

/// What part of the operation a fault is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The clamp as a whole: data that cannot tell this fault say nothing about the clamp.
    WholeClamp,
    /// Some of the clamp.
    SomeClamp,
    /// The function and its parameters.
    Function,
    /// Which element is gate and which is up.
    Halves,
    /// NaN and the ends of the exponent's range.
    Special,
}

/// A row of the table.
pub struct Fault {
    pub part: Part,
    /// Whether it is a fault of its part with one more: not named where the lesser one explains as
    /// much.
    pub more: bool,
    /// The name, for an operation that it can befall.
    pub name: fn(&GatedActivation) -> String,
    /// What the engine computes; none where the fault cannot befall the operation.
    pub recipe: fn(&GatedActivation, Recipe) -> Option<Recipe>,
    /// The data that tell it from the definition.
    pub needs: fn(&GatedActivation) -> String,
}

/// The table.
pub const FAULTS: [Fault; 23] = [
    Fault {
        part: Part::WholeClamp,
        more: false,
        name: |_| "no clamp".to_owned(),
        recipe: |op, r| clamped(op, r).map(|_| unclamped(r)),
        needs: |op| format!("gates above {0} or ups beyond ±{0}", limit(op)),
    },
    Fault {
        part: Part::SomeClamp,
        more: false,
        name: |op| match op.clamp() {
            Clamp::After(_) => "clamp before the activation".to_owned(),
            _ => "clamp after the activation".to_owned(),
        },
        recipe: |op, r| {
            clamped(op, r).map(|r| Recipe {
                gate: r.value,
                value: r.gate,
                ..r
            })
        },
        needs: |op| {
            let l = limit(op);
            format!("gates above {l} with results in which the function of {l} is not {l}")
        },
    },
    Fault {
        part: Part::SomeClamp,
        more: false,
        name: |_| "gate clamped on both sides".to_owned(),
        recipe: |op, r| {
            let both = |b: Bounds| b.above.map_or(b, Bounds::both);
            clamped(op, r).map(|r| Recipe {
                gate: both(r.gate),
                value: both(r.value),
                ..r
            })
        },
        needs: |op| format!("gates below -{}", limit(op)),
    },
    Fault {
        part: Part::SomeClamp,
        more: false,
        name: |_| "only the gate clamped".to_owned(),
        recipe: |op, r| {
            clamped(op, r).map(|r| Recipe {
                up: Bounds::NONE,
                ..r
            })
        },
        needs: |op| format!("ups beyond ±{}", limit(op)),
    },
    Fault {
        part: Part::SomeClamp,
        more: false,
        name: |_| "only up clamped".to_owned(),
        recipe: |op, r| {
            clamped(op, r).map(|r| Recipe {
                gate: Bounds::NONE,
                value: Bounds::NONE,
                ..r
            })
        },
        needs: |op| format!("gates above {}", limit(op)),
    },
    Fault {
        part: Part::SomeClamp,
        more: false,
        name: |_| "up clamped from above only".to_owned(),
        recipe: |op, r| {
            clamped(op, r).map(|r| Recipe {
                up: Bounds {
                    below: None,
                    ..r.up
                },
                ..r
            })
        },
        needs: |op| format!("ups below -{}", limit(op)),
    },
    Fault {
        part: Part::SomeClamp,
        more: false,
        name: |_| "up clamped from below only".to_owned(),
        recipe: |op, r| {
            clamped(op, r).map(|r| Recipe {
                up: Bounds {
                    above: None,
                    ..r.up
                },
                ..r
            })
        },
        needs: |op| format!("ups above {}", limit(op)),
    },
    Fault {
        part: Part::Function,
        more: false,
        name: |op| format!("gelu for {}", op.function().name()),
        recipe: |op, r| other(op, r, Function::Gelu),
        needs: |_| "gates of ordinary size".to_owned(),
    },
    Fault {
        part: Part::Function,
        more: false,
        name: |op| format!("tanh gelu for {}", op.function().name()),
        recipe: |op, r| other(op, r, Function::GeluTanh),
        needs: |_| "gates of ordinary size".to_owned(),
    },
    Fault {
        part: Part::Function,
        more: false,
        name: |op| format!("quick gelu for {}", op.function().name()),
        recipe: |op, r| other(op, r, Function::Silu { alpha: 1.702 }),
        needs: |_| "gates of ordinary size".to_owned(),
    },
    Fault {
        part: Part::Function,
        more: false,
        name: |op| match op.function() {
            Function::Silu { .. } => "alpha lost".to_owned(),
            Function::Situ { .. } => "bound of the gate lost".to_owned(),
            other => format!("silu for {}", other.name()),
        },
        recipe: |op, r| other(op, r, Function::Silu { alpha: 1.0 }),
        needs: |_| "gates of ordinary size".to_owned(),
    },
    Fault {
        part: Part::Function,
        more: false,
        name: |_| "beta lost".to_owned(),
        recipe: |op, r| (op.up_offset() != 0.0).then_some(Recipe { offset: 0.0, ..r }),
        needs: |_| "gates that are not 0".to_owned(),
    },
    Fault {
        part: Part::Function,
        more: true,
        name: |_| "alpha and beta lost".to_owned(),
        recipe: |op, r| {
            let both = other(op, r, Function::Silu { alpha: 1.0 })?;
            (op.up_offset() != 0.0).then_some(Recipe {
                offset: 0.0,
                ..both
            })
        },
        needs: |_| "gates of ordinary size".to_owned(),
    },
    Fault {
        part: Part::Function,
        more: false,
        name: |_| "bound of up lost".to_owned(),
        recipe: |op, r| match op.function() {
            Function::Situ {
                beta,
                up_bound: Some(_),
            } => Some(Recipe {
                function: Function::Situ {
                    beta,
                    up_bound: None,
                },
                ..r
            }),
            _ => None,
        },
        needs: |_| "ups near their bound".to_owned(),
    },
    Fault {
        part: Part::Function,
        more: false,
        name: |_| "threshold lost".to_owned(),
        recipe: |op, r| match op.function() {
            Function::FatRelu { threshold } if threshold != 0.0 => Some(Recipe {
                function: Function::FatRelu { threshold: 0.0 },
                ..r
            }),
            _ => None,
        },
        needs: |_| "gates between 0 and the threshold".to_owned(),
    },
    Fault {
        part: Part::Halves,
        more: false,
        name: |op| match op.layout() {
            Layout::Concatenated => "read as interleaved".to_owned(),
            Layout::Interleaved => "read as concatenated".to_owned(),
        },
        recipe: |_, r| {
            Some(Recipe {
                places: Places::LayoutMixedUp,
                ..r
            })
        },
        needs: |_| "rows of several elements that differ".to_owned(),
    },
    Fault {
        part: Part::Halves,
        more: false,
        name: |_| "halves swapped".to_owned(),
        recipe: |_, r| {
            Some(Recipe {
                places: Places::Swapped,
                ..r
            })
        },
        needs: |_| "gates that are not their ups".to_owned(),
    },
    Fault {
        part: Part::Halves,
        more: true,
        name: |_| "halves swapped and no clamp".to_owned(),
        recipe: |op, r| {
            clamped(op, r).map(|r| Recipe {
                places: Places::Swapped,
                ..unclamped(r)
            })
        },
        needs: |_| "gates that are not their ups".to_owned(),
    },
    Fault {
        part: Part::Special,
        more: false,
        name: |_| "NaN swallowed (becomes L)".to_owned(),
        recipe: |op, r| nan(op, r, |l| [Some(l); 2]),
        needs: |_| "NaN".to_owned(),
    },
    Fault {
        part: Part::Special,
        more: true,
        name: |_| "NaN swallowed (gate L, up -L)".to_owned(),
        recipe: |op, r| nan(op, r, |l| [Some(l), Some(-l)]),
        needs: |_| "NaN".to_owned(),
    },
    Fault {
        part: Part::Special,
        more: true,
        name: |_| "NaN swallowed (gate L, up stays)".to_owned(),
        recipe: |op, r| nan(op, r, |l| [Some(l), None]),
        needs: |_| "NaN gates".to_owned(),
    },
    Fault {
        part: Part::Special,
        more: false,
        name: |_| "NaN gate taken for one below the threshold".to_owned(),
        recipe: |op, r| match op.function() {
            Function::FatRelu { threshold } => Some(Recipe {
                nan: NanBecomes {
                    gate: Some(f64::from(threshold)),
                    up: None,
                },
                ..r
            }),
            _ => None,
        },
        needs: |_| "NaN gates".to_owned(),
    },
    Fault {
        part: Part::Special,
        more: false,
        name: |op| match op.function() {
            Function::Gelu | Function::GeluTanh => "the tail of the gelu cancels".to_owned(),
            _ => "the exponential underflows".to_owned(),
        },
        recipe: |op, r| match op.function() {
            Function::FatRelu { .. } => None,
            _ => Some(r),
        },
        needs: |op| match op.function() {
            Function::Gelu | Function::GeluTanh => "gates below -4".to_owned(),
            _ => "gates below -88".to_owned(),
        },
    },
];

fn limit(op: &GatedActivation) -> f32 {
    op.limit().map_or(f32::INFINITY, Limit::get)
}

/// The recipe, if the operation has a clamp.
fn clamped(op: &GatedActivation, r: Recipe) -> Option<Recipe> {
    op.limit().map(|_| r)
}

const fn unclamped(r: Recipe) -> Recipe {
    Recipe {
        gate: Bounds::NONE,
        value: Bounds::NONE,
        up: Bounds::NONE,
        ..r
    }
}

/// The recipe with another function than the operation's.
fn other(op: &GatedActivation, r: Recipe, function: Function) -> Option<Recipe> {
    (op.function() != function).then_some(Recipe { function, ..r })
}

/// The recipe with what minimum and maximum functions that prefer numbers make of NaN.
fn nan(op: &GatedActivation, r: Recipe, becomes: fn(f64) -> [Option<f64>; 2]) -> Option<Recipe> {
    let limit = f64::from(op.limit()?.get());
    let [gate, up] = becomes(limit);
    // An infinite gate becomes L on either side of the function.
    let gate = gate.map(|_| f64::INFINITY);
    let nan = NanBecomes { gate, up };
    Some(Recipe { nan, ..r })
}
