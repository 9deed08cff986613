//! Workspaces that many threads share.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use swiglu_core::Backend;

use crate::Workspace;

/// Workspaces for passes that run side by side over one set of weights: as many come to be as
/// passes ever ran at once, and each is used again.
///
/// On a device a pass is enqueued on its backend's stream or queue. Give a workspace back when the
/// work that was enqueued with it has ended, or keep one pool for each stream: then the order of
/// the stream keeps two passes apart.
///
/// ```
/// use swiglu_core::reference::Reference;
/// use swiglu_mlp::WorkspacePool;
/// let pool = WorkspacePool::<Reference>::new();
/// let first = pool.take();
/// let second = pool.take(); // another one, as the first is in use
/// drop((first, second));
/// assert_eq!(pool.idle(), 2);
/// ```
pub struct WorkspacePool<B: Backend> {
    idle: Mutex<Vec<Workspace<B>>>,
}

impl<B: Backend> WorkspacePool<B> {
    /// A pool that holds nothing yet.
    pub const fn new() -> Self {
        Self {
            idle: Mutex::new(Vec::new()),
        }
    }

    /// The workspace that was given back last, or a new one; it goes back when it is dropped.
    pub fn take(&self) -> PooledWorkspace<'_, B> {
        let workspace = self.lock().pop().unwrap_or_default();
        PooledWorkspace {
            pool: self,
            workspace,
        }
    }

    /// How many workspaces nobody uses.
    pub fn idle(&self) -> usize {
        self.lock().len()
    }

    /// A thread that panics while it holds the lock leaves the list whole.
    fn lock(&self) -> MutexGuard<'_, Vec<Workspace<B>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Backend> Default for WorkspacePool<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backend> fmt::Debug for WorkspacePool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkspacePool")
            .field("idle", &self.idle())
            .finish()
    }
}

/// A [`Workspace`] of a [`WorkspacePool`], for as long as it is held.
#[derive(Debug)]
pub struct PooledWorkspace<'a, B: Backend> {
    pool: &'a WorkspacePool<B>,
    workspace: Workspace<B>,
}

impl<B: Backend> Deref for PooledWorkspace<'_, B> {
    type Target = Workspace<B>;

    fn deref(&self) -> &Workspace<B> {
        &self.workspace
    }
}

impl<B: Backend> DerefMut for PooledWorkspace<'_, B> {
    fn deref_mut(&mut self) -> &mut Workspace<B> {
        &mut self.workspace
    }
}

impl<B: Backend> Drop for PooledWorkspace<'_, B> {
    fn drop(&mut self) {
        let workspace = std::mem::take(&mut self.workspace);
        self.pool.lock().push(workspace);
    }
}
