//! The MLP on matrices in the middle of larger memory: it reads and writes where they lie.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use swiglu_core::{Element, RowLayout, Tensor, TensorMut, bf16, f16, reference::Reference};
use swiglu_mlp::synthetic::{SyntheticConfig, synthetic_input};
use swiglu_mlp::{ActivationQuant, DeepseekV4Mlp, MlpConfig, Workspace};

mod common;
use common::{OnHost, load, tiny, with};

const TOKENS: usize = 3;

/// A matrix with a gap before it, between its rows and behind it.
struct Placed<T> {
    memory: Vec<T>,
    layout: RowLayout,
}

impl<T: Element> Placed<T> {
    /// `rows` surrounded by `poison`.
    fn new(rows: &[T], cols: usize, offset: usize, gap: usize, poison: T) -> Self {
        let layout = RowLayout::contiguous(rows.len() / cols, cols)
            .with_stride(cols + gap)
            .with_offset(offset);
        let mut memory = vec![poison; layout.end("rows").unwrap() + gap];
        for (t, row) in rows.chunks(cols).enumerate() {
            memory[layout.row(t)].copy_from_slice(row);
        }
        Self { memory, layout }
    }

    /// Room for a result, all of it poison.
    fn room(cols: usize, offset: usize, gap: usize) -> Self {
        Self::new(
            &vec![Self::poison(); TOKENS * cols],
            cols,
            offset,
            gap,
            Self::poison(),
        )
    }

    /// A NaN that no operation gives.
    fn poison() -> T {
        let canonical = T::from_f32(f32::NAN).to_bits();
        T::from_bits(canonical | 0x15)
    }

    fn rows(&self) -> Vec<T> {
        let rows = (0..self.layout.rows).flat_map(|t| &self.memory[self.layout.row(t)]);
        rows.copied().collect()
    }

    /// The bits of what lies around the rows.
    fn around(&self) -> Vec<u32> {
        let inside = |at: &usize| (0..self.layout.rows).any(|t| self.layout.row(t).contains(at));
        let outside = (0..self.memory.len()).filter(|at| !inside(at));
        outside.map(|at| self.memory[at].to_bits()).collect()
    }

    fn check_surroundings(&self) {
        let poison = Self::poison().to_bits();
        assert!(self.around().iter().all(|&bits| bits == poison));
    }
}

fn bits<T: Element>(x: &[T]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn pass<X: Element, Y: Element, B: OnHost>(
    mlp: &DeepseekV4Mlp<B>,
    x: &Placed<X>,
    y: &mut Placed<Y>,
) {
    let layout = y.layout;
    mlp.forward(
        Tensor::from_slice(&x.memory, x.layout),
        TensorMut::from_slice(&mut y.memory, layout),
        &mut Workspace::new(),
    )
    .unwrap();
}

/// A pass in the middle of larger memory gives the bits of one on memory of its own.
fn in_the_middle<X: Element, Y: Element, B: OnHost>(mlp: &DeepseekV4Mlp<B>) {
    let h = mlp.hidden_size();
    let values = synthetic_input(TOKENS, h, 9);
    let values: Vec<X> = values.iter().map(|v| X::from_f32(v.to_f32())).collect();
    let mut expected = Placed::<Y>::room(h, 0, 0);
    pass(
        mlp,
        &Placed::new(&values, h, 0, 0, X::default()),
        &mut expected,
    );
    assert!(expected.rows().iter().all(|v| !v.is_nan()));
    for (from, to) in [((0, 5), (7, 0)), ((3, 0), (0, 2)), ((1, 1), (13, 9))] {
        // What lies around x is NaN: one that is read shows in y.
        let x = Placed::new(&values, h, from.0, from.1, Placed::<X>::poison());
        let mut y = Placed::<Y>::room(h, to.0, to.1);
        pass(mlp, &x, &mut y);
        assert_eq!(bits(&y.rows()), bits(&expected.rows()), "{from:?} {to:?}");
        y.check_surroundings();
        assert_eq!(bits(&x.rows()), bits(&values));
        x.check_surroundings();
    }
}

fn each(test: impl Fn(&DeepseekV4Mlp<Reference>)) {
    let form = SyntheticConfig {
        block: 32,
        ..tiny()
    };
    for activation_quant in [ActivationQuant::None, ActivationQuant::Fp8Block] {
        with(&form, |config, expert| {
            let config = MlpConfig {
                activation_quant,
                ..config
            };
            test(&load(&config, &expert));
        });
    }
}

#[test]
fn x_and_y_may_lie_in_the_middle_of_larger_memory() {
    each(|mlp| {
        in_the_middle::<bf16, bf16, _>(mlp);
        in_the_middle::<bf16, f32, _>(mlp);
        in_the_middle::<f16, bf16, _>(mlp);
        in_the_middle::<f32, f16, _>(mlp);
    });
}

#[test]
fn so_may_what_the_stages_give() {
    each(|mlp| {
        let (h, i) = (mlp.hidden_size(), mlp.intermediate_size());
        let values = synthetic_input(TOKENS, h, 9);
        let (gate_up, act, y) = common::stages(mlp, &values);
        let x = Placed::new(&values, h, 3, 5, Placed::<bf16>::poison());
        let mut stages = [Placed::<bf16>::room(2 * i, 1, 3), Placed::room(i, 5, 1)];
        let mut result = Placed::<f32>::room(h, 2, 7);
        let [first, second] = &mut stages;
        let layouts = [first.layout, second.layout, result.layout];
        mlp.forward_stages(
            Tensor::from_slice(&x.memory, x.layout),
            TensorMut::from_slice(&mut first.memory, layouts[0]),
            TensorMut::from_slice(&mut second.memory, layouts[1]),
            TensorMut::from_slice(&mut result.memory, layouts[2]),
            &mut Workspace::new(),
        )
        .unwrap();
        for (stage, expected) in stages.iter().zip([gate_up, act]) {
            assert_eq!(bits(&stage.rows()), bits(&expected));
            stage.check_surroundings();
        }
        assert_eq!(bits(&result.rows()), bits(&y));
        result.check_surroundings();
    });
}

#[test]
fn one_row_for_all_tokens_is_refused() {
    each(|mlp| {
        let h = mlp.hidden_size();
        let x = synthetic_input(1, h, 9);
        let y = RowLayout::contiguous(TOKENS, h);
        let mut memory = vec![bf16::ZERO; TOKENS * h];
        let repeated = RowLayout::contiguous(TOKENS, h).with_stride(0);
        let error = mlp.forward(
            Tensor::from_slice(&x, repeated),
            TensorMut::from_slice(&mut memory, y),
            &mut Workspace::new(),
        );
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("x: expected a row stride of at least 40"),
            "{error}"
        );
    });
}
