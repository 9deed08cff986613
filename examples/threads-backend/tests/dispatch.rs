//! A platform from outside is chosen as the built-in ones are, and before them.

use std::num::NonZero;
use std::sync::Arc;

use swiglu::{
    AnyBackend, Dispatch, Dispatcher, Float, GatedActivation, Request, WeightFormat, bf16, built_in,
};
use threads_backend::{Threads, register};

fn dispatcher(platform: Option<&str>) -> Dispatcher {
    let mut registry = built_in();
    register(&mut registry);
    let dispatch = Dispatch {
        platform: platform.map(str::to_owned),
        ..Dispatch::default()
    };
    Dispatcher::new(registry, dispatch)
}

#[test]
fn it_is_tried_before_the_built_in_ones() {
    let op = GatedActivation::deepseek_v4();
    for asked in [None, Some("threads")] {
        let device = dispatcher(asked).device(&op, Float::BF16).unwrap();
        assert_eq!(device.report().chosen, "threads");
        assert_eq!(device.report().rejected, []);
        let gate_up = vec![bf16::from_f32(30.0); 3 * 2 * 4096];
        let mut y = vec![bf16::ZERO; 3 * 4096];
        device.act_and_mul(&op, &gate_up, &mut y, 4096).unwrap();
        assert!(y.iter().all(|y| *y == bf16::from_f32(99.9955)));
    }
    let cpu = dispatcher(Some("cpu")).device(&op, Float::BF16).unwrap();
    assert_eq!(cpu.report().chosen, "cpu");
    assert_eq!(cpu.backend().platform(), "cpu");
}

#[test]
fn what_it_does_not_run_goes_to_the_next_with_the_reason() {
    let matmul = Request::Matmul {
        x: Float::BF16,
        weight: WeightFormat::DEEPSEEK_V4,
        y: Float::BF16,
    };
    let device = dispatcher(None).device_for(&[matmul]).unwrap();
    let report = device.report().to_string();
    assert!(report.contains("threads (it only activates)"), "{report}");
}

#[test]
fn it_wins_over_a_built_in_platform_of_the_same_name() {
    let mut registry = built_in();
    registry.register("cpu", |_options| {
        let threads = Threads(NonZero::<usize>::MIN);
        Ok(Arc::new(AnyBackend::new(threads)))
    });
    let dispatch = Dispatch {
        platform: Some("cpu".to_owned()),
        ..Dispatch::default()
    };
    let device = Dispatcher::new(registry, dispatch)
        .device(&GatedActivation::silu_and_mul(), Float::F32)
        .unwrap();
    assert_eq!(device.report().chosen, "cpu");
    assert_eq!(device.backend().platform(), "threads");
}
