//! What was computed, kept in Redis for all servers over it.
//!
//! **Invariant:** a value is used only when it says that it is this tenant's and namespace's, and carries the proof
//! that a server with the deployment's secret put it under this key: whoever writes into Redis can make the servers
//! forget, and raise an alarm, but put no words into an answer.
//! **Invariant:** everything that is kept expires.

use std::time::Duration;

use async_trait::async_trait;
use redis::Script;
use uuid::Uuid;

use super::BACKEND;
use super::client::RedisClient;
use super::keys::{Key, Keys};
use crate::store::cache::{Cache, CacheKey, unwrap, wrap};
use crate::store::error::{ErrorKind, StoreError};

const GET: &str = "cache.get";
const PUT: &str = "cache.put";
const LOCK: &str = "cache.lock";
const UNLOCK: &str = "cache.unlock";

/// Keeps values in Redis.
pub struct RedisCache {
    redis: RedisClient,
    keys: Keys,
    lock: Script,
    unlock: Script,
}

impl RedisCache {
    /// Over this Redis. Servers with the same `secret` read each other's values.
    #[must_use]
    pub fn new(redis: RedisClient, secret: &[u8; 32]) -> Self {
        Self {
            redis,
            keys: Keys::new(secret),
            lock: Script::new(include_str!("lock.lua")),
            unlock: Script::new(include_str!("unlock.lua")),
        }
    }

    fn read(&self, name: &Key, key: &CacheKey, sealed: &[u8]) -> Result<Vec<u8>, (ErrorKind, &'static str)> {
        let (kept, holds) = self.keys.open(name, sealed).unwrap_or((sealed, false));
        // Another tenant's value is an alarm, whoever put it there.
        match unwrap(key, kept)? {
            value if holds => Ok(value.to_vec()),
            _ => Err((ErrorKind::Damaged, "a value that no server put there")),
        }
    }
}

fn milliseconds(keep: Duration) -> u64 {
    u64::try_from(keep.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// What the script of a lock says of it.
fn held(verdict: i64, operation: &'static str) -> Result<bool, StoreError> {
    let error = |kind, words: &str| Err(StoreError::new(kind, BACKEND, operation, words));
    match verdict {
        1 => Ok(true),
        0 => Ok(false),
        -1 => error(ErrorKind::Foreign, "another tenant's lock"),
        _ => error(ErrorKind::Damaged, "a lock that cannot be read"),
    }
}

#[async_trait]
impl Cache for RedisCache {
    fn name(&self) -> &'static str {
        "Redis"
    }

    async fn get(&self, key: &CacheKey) -> Result<Option<Vec<u8>>, StoreError> {
        let name = self.keys.kept(key);
        let command = redis::Cmd::get(&name.name);
        let sealed: Option<Vec<u8>> = self.redis.send(GET, key.tenant(), &command).await?;
        let value = sealed.map(|sealed| self.read(&name, key, &sealed)).transpose();
        value.map_err(|(kind, words)| StoreError::new(kind, BACKEND, GET, words))
    }

    async fn put(&self, key: &CacheKey, value: &[u8], keep: Duration) -> Result<(), StoreError> {
        let name = self.keys.kept(key);
        let sealed = self.keys.seal(&name, wrap(key, value));
        let mut command = redis::cmd("SET");
        command.arg(&name.name).arg(sealed).arg("PX").arg(milliseconds(keep));
        self.redis.send(PUT, key.tenant(), &command).await
    }

    async fn lock(&self, key: &CacheKey, holder: Uuid, keep: Duration) -> Result<bool, StoreError> {
        let name = self.keys.lock(key);
        let mut script = self.lock.key(name.name);
        script.arg(name.owner).arg(holder.to_string()).arg(milliseconds(keep));
        held(self.redis.run(LOCK, name.tenant, &script).await?, LOCK)
    }

    async fn unlock(&self, key: &CacheKey, holder: Uuid) -> Result<(), StoreError> {
        let name = self.keys.lock(key);
        let mut script = self.unlock.key(name.name);
        script.arg(name.owner).arg(holder.to_string());
        held(self.redis.run(UNLOCK, name.tenant, &script).await?, UNLOCK).map(drop)
    }
}
