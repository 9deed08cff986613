use std::fmt;

use swiglu_core::{Backend, Routes, Routing};

use crate::workspace::Slot;
use crate::{Result, Workspace};

/// The memory between the stages of a whole layer, as [`Workspace`] is for an MLP: it grows to the
/// largest T that it has seen and is then reused.
pub struct MoeWorkspace<B: Backend> {
    pub(super) mlp: Workspace<B>,
    routes: Option<Routes<B::Buffer>>,
    pub(super) scratch: Slot<B>,
    pub(super) act: Slot<B>,
    pub(super) shared: Slot<B>,
}

impl<B: Backend> MoeWorkspace<B> {
    /// A workspace that holds nothing yet.
    pub const fn new() -> Self {
        Self {
            mlp: Workspace::new(),
            routes: None,
            scratch: Slot::new(),
            act: Slot::new(),
            shared: Slot::new(),
        }
    }

    /// Takes the routes out, with room for so many tokens, while the stages use the rest.
    pub(super) fn take_routes(
        &mut self,
        backend: &B,
        routing: &Routing,
        tokens: usize,
    ) -> Result<Routes<B::Buffer>> {
        let kept = self.routes.take().filter(|r| r.routing() == routing);
        Ok(match kept {
            Some(mut routes) => {
                routes.resize(backend, tokens)?;
                routes
            }
            None => Routes::new(backend, routing, tokens)?,
        })
    }

    /// Puts them back.
    pub(super) fn keep_routes(&mut self, routes: Routes<B::Buffer>) {
        self.routes = Some(routes);
    }
}

impl<B: Backend> Default for MoeWorkspace<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backend> fmt::Debug for MoeWorkspace<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MoeWorkspace").finish_non_exhaustive()
    }
}
