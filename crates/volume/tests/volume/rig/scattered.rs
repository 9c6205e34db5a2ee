//! A store whose operations take a while, so that others come in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sealvol_store::{Durability, IoBuf, Store, StoreError};

use super::executor::yields;
use super::random::Random;

/// Gives way up to `most` times before and after each operation of the store within.
pub(crate) struct Scattered<S> {
    store: S,
    random: Random,
    most: u64,
    flips: Arc<AtomicBool>,
}

impl<S: Store> Scattered<S> {
    pub(crate) fn new(store: S, random: Random, most: u64) -> Self {
        Self {
            store,
            random,
            most,
            flips: Arc::default(),
        }
    }

    /// While that is set, what is written is not what was asked for, in its first bit.
    pub(crate) fn flipping(self, flips: &Arc<AtomicBool>) -> Self {
        let flips = Arc::clone(flips);
        Self { flips, ..self }
    }

    async fn wait(&self) {
        yields(self.random.below(self.most + 1)).await;
    }
}

impl<S: Store> Store for Scattered<S> {
    async fn read_at(&self, buf: IoBuf, offset: u64) -> (IoBuf, Result<(), StoreError>) {
        self.wait().await;
        let result = self.store.read_at(buf, offset).await;
        self.wait().await;
        result
    }

    async fn write_at(
        &self,
        buf: IoBuf,
        offset: u64,
        durability: Durability,
    ) -> (IoBuf, Result<(), StoreError>) {
        self.wait().await;
        let flips = self.flips.load(Ordering::Relaxed);
        let mut buf = buf;
        buf[0] ^= u8::from(flips);
        let (mut buf, result) = self.store.write_at(buf, offset, durability).await;
        buf[0] ^= u8::from(flips);
        self.wait().await;
        (buf, result)
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.wait().await;
        let result = self.store.sync().await;
        self.wait().await;
        result
    }

    async fn punch(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.wait().await;
        let result = self.store.punch(offset, len).await;
        self.wait().await;
        result
    }

    async fn allocate(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.wait().await;
        self.store.allocate(offset, len).await
    }

    fn len(&self) -> u64 {
        self.store.len()
    }

    async fn grow(&self, len: u64) -> Result<(), StoreError> {
        self.wait().await;
        self.store.grow(len).await
    }

    fn access(&self) -> &'static str {
        self.store.access()
    }

    async fn discard_cache(&self) -> Result<(), StoreError> {
        self.store.discard_cache().await
    }
}
