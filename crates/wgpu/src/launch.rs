//! What a dispatch is made of: the call that a kernel reads, the windows that it is bound to, and
//! the recording that it joins.

mod bound;
mod call;
mod dispatch;
mod matrix;
mod recorder;
mod scratch;
mod window;

pub(crate) use bound::Bound;
pub(crate) use call::{
    ActivationCall, ChooseCall, GroupedCall, MatmulCall, Op, Quant, QuantizeCall, RequantizeCall,
    RowsCall, ScheduleCall, SortCall, SumCall, float_code,
};
pub(crate) use dispatch::{Workgroups, bind, dispatch, in_workgroups};
pub(crate) use matrix::{CodesAndScales, Halves, Matrix};
pub(crate) use recorder::Recorder;
pub(crate) use scratch::Scratch;
pub(crate) use window::{Columns, RowSpan, Window, are_apart, check_apart, whole_view};
