//! The calls that models make, with what they move and compute: one list for tests, for benches
//! and for what a backend is asked to support.

use std::fmt;

use swiglu_core::{
    Float, GatedActivation, Quantization, Request, ScaleFormat, Shape, WeightFormat,
};

/// The sizes of a model's MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlpShape {
    /// The model's short name.
    pub name: &'static str,
    /// H, the inputs and outputs.
    pub hidden: usize,
    /// I, the width between.
    pub intermediate: usize,
    /// The side of the weights' square blocks, and the length of the activations' groups.
    pub block: usize,
}

impl MlpShape {
    /// DeepSeek-V4-Flash.
    pub const FLASH: Self = Self {
        name: "flash",
        hidden: 4096,
        intermediate: 2048,
        block: 128,
    };
    /// DeepSeek-V4-Pro.
    pub const PRO: Self = Self {
        name: "pro",
        hidden: 7168,
        intermediate: 3072,
        block: 128,
    };
    /// DeepSeek-V4.1.
    pub const V41: Self = Self {
        name: "v41",
        hidden: 5120,
        intermediate: 2304,
        block: 32,
    };
    /// All of them.
    pub const ALL: [Self; 3] = [Self::FLASH, Self::PRO, Self::V41];

    /// How its weights are stored: FP8 in blocks with E8M0 scales.
    pub const fn weight(&self) -> WeightFormat {
        WeightFormat::Fp8 {
            scales: ScaleFormat::E8M0,
            block: [self.block, self.block],
        }
    }

    /// How its activations are quantized, where they are.
    pub const fn quantization(&self) -> Quantization {
        match self.block {
            32 => Quantization::deepseek_v4_1(),
            _ => Quantization::deepseek_v4(),
        }
    }
}

/// One call: what is asked, on what sizes, what it moves and computes.
///
/// ```
/// use swiglu_conformance::Case;
/// use swiglu_core::{Float, GatedActivation};
/// let case = Case::activation(GatedActivation::deepseek_v4(), Float::BF16, 64, 3072);
/// assert_eq!(case.bytes(), [64 * 6144 * 2, 64 * 3072 * 2]);
/// assert_eq!(case.operations(), 0);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    name: String,
    request: Request,
    shape: Shape,
    bytes: [usize; 2],
    operations: usize,
}

/// Bytes of codes with their scales.
const fn quantized_bytes(quant: &Quantization, rows: usize, cols: usize) -> usize {
    rows * (cols + quant.groups(cols) * quant.format().size())
}

/// Bytes of a weight [cols, depth] with its scales. Blocks have no side of 0 here.
fn weight_bytes(format: &WeightFormat, cols: usize, depth: usize) -> usize {
    let scales = format.scaling().map_or(0, |(scale, [r, c])| {
        cols.div_ceil(r) * depth.div_ceil(c) * scale.size()
    });
    cols * format.row_bytes(depth) + scales
}

impl Case {
    /// An activation of rows of 2d elements.
    pub fn activation(op: GatedActivation, float: Float, rows: usize, d: usize) -> Self {
        let size = float.size();
        Self {
            name: format!("{} {float} {rows} x {d}", op.name()),
            request: Request::Activation { op, float },
            shape: Shape {
                rows,
                cols: d,
                depth: 0,
            },
            bytes: [rows * 2 * d * size, rows * d * size],
            operations: 0,
        }
    }

    /// An activation of rows of 2d elements whose results are quantized.
    pub fn activation_quant(
        op: GatedActivation,
        quant: Quantization,
        float: Float,
        rows: usize,
        d: usize,
    ) -> Self {
        Self {
            name: format!("{} {float} to {quant} {rows} x {d}", op.name()),
            request: Request::ActivationQuant { op, quant, float },
            bytes: [
                rows * 2 * d * float.size(),
                quantized_bytes(&quant, rows, d),
            ],
            ..Self::activation(op, float, rows, d)
        }
    }

    /// A matmul of x [rows, depth] by a weight [cols, depth], all that is not the weight in one
    /// type.
    pub fn matmul(weight: WeightFormat, float: Float, [rows, cols, depth]: [usize; 3]) -> Self {
        let read = rows * depth * float.size() + weight_bytes(&weight, cols, depth);
        Self {
            name: format!(
                "matmul {float} by {} {rows} x {depth} x {cols}",
                weight.name()
            ),
            request: Request::Matmul {
                x: float,
                weight,
                y: float,
            },
            shape: Shape { rows, cols, depth },
            bytes: [read, rows * cols * float.size()],
            operations: 2 * rows * cols * depth,
        }
    }

    /// As [`Self::matmul`], by a weight [2I, depth] with an activation behind it. What lies between
    /// the two need not be written and is not counted.
    pub fn gated_matmul(
        op: GatedActivation,
        weight: WeightFormat,
        float: Float,
        [rows, cols, depth]: [usize; 3],
    ) -> Self {
        let plain = Self::matmul(weight, float, [rows, cols, depth]);
        Self {
            name: format!("{} and {}", plain.name, op.name()),
            request: Request::GatedMatmul {
                op,
                x: float,
                weight,
                act: float,
            },
            bytes: [plain.bytes[0], rows * (cols / 2) * float.size()],
            ..plain
        }
    }

    /// As [`Self::matmul`], of an x that is quantized.
    pub fn quantized_matmul(
        quant: Quantization,
        weight: WeightFormat,
        y: Float,
        [rows, cols, depth]: [usize; 3],
    ) -> Self {
        let plain = Self::matmul(weight, y, [rows, cols, depth]);
        let read = quantized_bytes(&quant, rows, depth) + weight_bytes(&weight, cols, depth);
        Self {
            name: format!(
                "matmul {quant} by {} {rows} x {depth} x {cols}",
                weight.name()
            ),
            request: Request::QuantizedMatmul { quant, weight, y },
            bytes: [read, plain.bytes[1]],
            ..plain
        }
    }

    /// The calls of one MLP of DeepSeek's: its gated matmul and its second matmul, both of bf16
    /// and of quantized activations, and the activation between the latter.
    pub fn mlp(shape: &MlpShape, rows: usize) -> [Self; 5] {
        let (h, i) = (shape.hidden, shape.intermediate);
        let (weight, quant, float) = (shape.weight(), shape.quantization(), Float::BF16);
        let op = GatedActivation::deepseek_v4();
        let [first, second] = [[rows, 2 * i, h], [rows, h, i]];
        [
            Self::gated_matmul(op, weight, float, first),
            Self::matmul(weight, float, second),
            Self::quantized_matmul(quant, weight, float, first),
            Self::activation_quant(op, quant, float, rows, i),
            Self::quantized_matmul(quant, weight, float, second),
        ]
        .map(|case| Self {
            name: format!("{}: {}", shape.name, case.name),
            ..case
        })
    }

    /// The cases that everybody measures: the clamped activation from one token to more than
    /// caches hold, in each type, and the MLPs of the models from decoding to prefill.
    pub fn standard() -> Vec<Self> {
        let op = GatedActivation::deepseek_v4();
        let shapes = [(1, 2048), (1, 2304), (64, 3072), (512, 3072), (4096, 3072)];
        let mut all = Vec::new();
        for float in [Float::BF16, Float::F16, Float::F32] {
            all.extend(shapes.map(|(rows, d)| Self::activation(op, float, rows, d)));
        }
        for shape in &MlpShape::ALL {
            for rows in [1, 16, 256] {
                all.extend(Self::mlp(shape, rows));
            }
        }
        all
    }

    /// What it is called, such as `flash: matmul bf16 by fp8 1 x 2048 x 4096`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is asked of a backend.
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// The sizes.
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The least bytes that must be read and written.
    pub const fn bytes(&self) -> [usize; 2] {
        self.bytes
    }

    /// Multiplications and additions of the sums, each counted; 0 of an activation, which its bytes
    /// bound.
    pub const fn operations(&self) -> usize {
        self.operations
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_case_counts_each_byte_and_operation_once() {
        let [gated, down, quantized, act, _] = Case::mlp(&MlpShape::FLASH, 3);
        let weights = 4096 * 4096 + 32 * 32;
        assert_eq!(gated.bytes(), [3 * 4096 * 2 + weights, 3 * 2048 * 2]);
        assert_eq!(gated.operations(), 2 * 3 * 4096 * 4096);
        let weights = 4096 * 2048 + 32 * 16;
        assert_eq!(down.bytes(), [3 * 2048 * 2 + weights, 3 * 4096 * 2]);
        let weights = 4096 * 4096 + 32 * 32;
        let codes = 3 * (4096 + 32);
        assert_eq!(quantized.bytes(), [codes + weights, 3 * 4096 * 2]);
        assert_eq!(act.bytes(), [3 * 4096 * 2, 3 * (2048 + 16)]);
        assert_eq!(act.operations(), 0);
        let [_, v41, ..] = Case::mlp(&MlpShape::V41, 1);
        assert_eq!(v41.bytes()[0], 2304 * 2 + 5120 * 2304 + 160 * 72);
    }

    #[test]
    fn standard_cases_have_names_of_their_own() {
        let all = Case::standard();
        let names: BTreeSet<_> = all.iter().map(Case::name).collect();
        assert_eq!(names.len(), all.len());
        assert!(
            names.contains("flash: matmul bf16 by fp8 1 x 2048 x 4096"),
            "{names:?}"
        );
    }
}
