//! The matrices of a call, as parts without their backend's name.

use swiglu_core::{Backend, Float, GateUp, Quantized, RowLayout, ScaleLayout, Tensor};

use super::window::Columns;
use crate::{Result, View};

/// A matrix of floats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    /// The argument's name.
    pub(crate) name: &'static str,
    pub(crate) view: View<'a>,
    pub(crate) float: Float,
    pub(crate) layout: RowLayout,
}

impl<'a> Matrix<'a> {
    pub(crate) const fn of<B>(name: &'static str, tensor: &Tensor<'a, B>) -> Self
    where
        B: Backend<View<'a> = View<'a>>,
    {
        Self {
            name,
            view: tensor.view,
            float: tensor.float,
            layout: tensor.layout,
        }
    }

    /// Its rows.
    ///
    /// # Errors
    /// A view that starts between two elements.
    pub(crate) fn columns(&self) -> Result<Columns<'a>> {
        Columns::of(self.name, self.view, self.float.size(), &self.layout)
    }
}

/// The halves of an activation's input.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Halves<'a> {
    Merged(Matrix<'a>),
    Split { gate: Matrix<'a>, up: Matrix<'a> },
}

impl<'a> Halves<'a> {
    pub(crate) const fn of<B>(input: &GateUp<'a, B>) -> Self
    where
        B: Backend<View<'a> = View<'a>>,
    {
        match input {
            GateUp::Merged(input) => Self::Merged(Matrix::of("input", input)),
            GateUp::Split { gate, up } => Self::Split {
                gate: Matrix::of("gate", gate),
                up: Matrix::of("up", up),
            },
        }
    }

    pub(crate) const fn float(&self) -> Float {
        match self {
            Self::Merged(input) => input.float,
            Self::Split { gate, .. } => gate.float,
        }
    }

    /// The views of the gates and of the ups.
    pub(crate) const fn views(&self) -> [View<'a>; 2] {
        match self {
            Self::Merged(input) => [input.view, input.view],
            Self::Split { gate, up } => [gate.view, up.view],
        }
    }
}

/// A matrix of codes and its scales.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodesAndScales<'a> {
    pub(crate) codes: View<'a>,
    pub(crate) layout: RowLayout,
    pub(crate) scales: View<'a>,
    pub(crate) scale_layout: ScaleLayout,
}

impl<'a> CodesAndScales<'a> {
    pub(crate) const fn of<B>(matrix: &Quantized<'a, B>) -> Self
    where
        B: Backend<View<'a> = View<'a>>,
    {
        Self {
            codes: matrix.codes,
            layout: matrix.layout,
            scales: matrix.scales,
            scale_layout: matrix.scale_layout,
        }
    }

    /// The codes' rows.
    ///
    /// # Errors
    /// None: every byte may start a code.
    pub(crate) fn columns(&self) -> Result<Columns<'a>> {
        Columns::of("codes", self.codes, 1, &self.layout)
    }
}
