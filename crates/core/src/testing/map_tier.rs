//! A tier that is a map and a lock: the second implementer of every trait, to test the walk without a disk.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::batch::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, TableId};
use crate::row::{Rows, RowsMut};
use crate::tier::{
    CacheTier, Expected, Held, Promotion, TableLoad, TableSpec, Tier, TierKind, TierUsage, TruthTier,
    Visitor, Written,
};

type Map = HashMap<Key, Vec<u8>>;

#[derive(Default)]
struct MapTable {
    rows: Map,
    record: Option<String>,
    /// Rows without a record are the predecessor's.
    is_unrecorded: bool,
}

/// Called before each lookup and before each write, with the operation's name; its error becomes the operation's.
pub type Hook = dyn Fn(&str) -> Result<()> + Send + Sync;

/// See the module.
pub struct MapTier {
    kind: TierKind,
    specs: Vec<TableSpec>,
    tables: Vec<Mutex<MapTable>>,
    hook: Mutex<Option<Arc<Hook>>>,
    num_looked_up: AtomicU64,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl MapTier {
    /// Empty tables.
    pub fn new(kind: TierKind, specs: &[TableSpec]) -> Self {
        let tables = specs.iter().map(|_| Mutex::default()).collect();
        let (hook, num_looked_up) = (Mutex::new(None), AtomicU64::new(0));
        Self { kind, specs: specs.to_vec(), tables, hook, num_looked_up, read_only: false }
    }

    /// Keys of all lookups so far.
    pub fn num_looked_up(&self) -> u64 {
        self.num_looked_up.load(Ordering::Relaxed)
    }

    /// Runs `hook` before every operation: to fail it, or to do something at just that moment.
    pub fn set_hook(&self, hook: impl Fn(&str) -> Result<()> + Send + Sync + 'static) {
        *self.hook.lock() = Some(Arc::new(hook));
    }

    /// Makes what the table holds look like the predecessor's.
    pub fn forget_record(&self, table: TableId) {
        let mut table = self.tables[table.index()].lock();
        table.record = None;
        table.is_unrecorded = true;
    }

    /// The row of one key.
    pub fn row(&self, table: TableId, key: Key) -> Option<Vec<u8>> {
        self.tables[table.index()].lock().rows.get(&key).cloned()
    }

    fn table(&self, table: TableId, row_bytes: Option<usize>) -> Result<&Mutex<MapTable>> {
        let wrong = || Error::new(ErrorKind::InvalidArgument, "unknown table or wrong size of rows");
        let spec = self.specs.get(table.index()).ok_or_else(wrong)?;
        if row_bytes.is_some_and(|bytes| bytes != spec.row_bytes) {
            return Err(wrong());
        }
        self.tables.get(table.index()).ok_or_else(wrong)
    }

    fn before(&self, operation: &str) -> Result<()> {
        let hook = self.hook.lock().clone();
        hook.map_or(Ok(()), |hook| hook(operation))
    }

    fn write(
        &self,
        operation: &str,
        table: TableId,
        rows: Option<(Rows<'_>, usize)>,
    ) -> Result<&Mutex<MapTable>> {
        self.before(operation)?;
        if self.read_only {
            return Err(Error::new(ErrorKind::Unsupported, "read-only"));
        }
        if rows.is_some_and(|(rows, num_keys)| rows.len() != num_keys) {
            return Err(Error::new(ErrorKind::InvalidArgument, "keys and rows differ in number"));
        }
        self.table(table, rows.map(|(rows, _)| rows.row_bytes()))
    }
}

fn look_up(map: &Map, batch: Batch<'_>, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) {
    for (position, key) in batch.iter() {
        match map.get(&key) {
            Some(row) => assert!(rows.write(position as usize, row)),
            None => misses.push(position),
        }
    }
}

impl Tier for MapTier {
    fn kind(&self) -> TierKind {
        self.kind
    }

    fn lookup(
        &self,
        table: TableId,
        batch: Batch<'_>,
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()> {
        self.before("lookup")?;
        self.num_looked_up.fetch_add(batch.len() as u64, Ordering::Relaxed);
        look_up(&self.table(table, Some(rows.row_bytes()))?.lock().rows, batch, rows, misses);
        Ok(())
    }

    fn insert(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        let mut table = self.write("insert", table, Some((rows, keys.len())))?.lock();
        table.rows.extend(keys.iter().copied().zip(rows.iter().map(<[u8]>::to_vec)));
        Ok(())
    }

    fn erase(&self, table: TableId, keys: &[Key]) -> Result<()> {
        let mut table = self.write("erase", table, None)?.lock();
        for key in keys {
            table.rows.remove(key);
        }
        Ok(())
    }

    /// Nobody reads rows where they lie; the hook hears of it.
    fn reclaim(&self, _: TableId) {
        let _ = self.before("reclaim");
    }

    fn abandon_replaced(&self, _: TableId) {
        let _ = self.before("abandon");
    }

    fn usage(&self, table: TableId) -> Result<TierUsage> {
        let rows = self.table(table, None)?.lock().rows.len() as u64;
        Ok(TierUsage { rows, bytes: rows * self.specs[table.index()].row_bytes as u64 })
    }
}

impl CacheTier for MapTier {
    fn update(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        let mut table = self.write("update", table, Some((rows, keys.len())))?.lock();
        for (key, row) in keys.iter().zip(rows.iter()) {
            if let Some(held) = table.rows.get_mut(key) {
                *held = row.to_vec();
            }
        }
        Ok(())
    }

    fn promote(&self, table: TableId, promotion: Promotion<'_>) -> Result<u64> {
        let mut table = self.write("promote", table, Some((promotion.rows, promotion.keys.len())))?.lock();
        let before = table.rows.len();
        for (&key, row) in promotion.keys.iter().zip(promotion.rows.iter()) {
            if promotion.clock.is_current(key, promotion.snapshot) {
                table.rows.entry(key).or_insert_with(|| row.to_vec());
            }
        }
        Ok((table.rows.len() - before) as u64)
    }

    fn reserve(&self, table: TableId, _: Expected) -> Result<()> {
        self.table(table, None).map(drop)
    }
}

impl TruthTier for MapTier {
    fn held(&self, table: TableId) -> Result<Held> {
        let table = self.table(table, None)?.lock();
        Ok(match &table.record {
            Some(record) => Held::Table(record.clone()),
            None if table.is_unrecorded => Held::Unrecorded,
            None => Held::Nothing,
        })
    }

    fn set_record(&self, table: TableId, record: &str) -> Result<()> {
        self.write("set_record", table, None)?.lock().record = Some(record.into());
        Ok(())
    }

    fn forget_interrupted_load(&self, table: TableId) -> Result<()> {
        self.write("forget_interrupted_load", table, None).map(drop)
    }

    fn begin_load(&self, table: TableId, _: Expected) -> Result<Box<dyn TableLoad + '_>> {
        let table = self.write("begin_load", table, None)?;
        Ok(Box::new(MapLoad { tier: self, table, rows: Map::new() }))
    }

    fn scan(&self, table: TableId, visit: &mut Visitor<'_>) -> Result<()> {
        self.before("scan")?;
        let row_bytes = self.specs[table.index()].row_bytes;
        let rows = self.table(table, None)?.lock().rows.clone();
        let all: Vec<(Key, Vec<u8>)> = rows.into_iter().collect();
        for piece in all.chunks(100) {
            let keys: Vec<Key> = piece.iter().map(|(key, _)| *key).collect();
            let bytes: Vec<u8> = piece.iter().flat_map(|(_, row)| row.clone()).collect();
            if visit(&keys, Rows::new(&bytes, row_bytes).unwrap())? == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }
}

struct MapLoad<'t> {
    tier: &'t MapTier,
    table: &'t Mutex<MapTable>,
    rows: Map,
}

impl TableLoad for MapLoad<'_> {
    fn resume(&mut self, origin: &str) -> Result<u64> {
        self.tier.before(&format!("resume {origin}"))?;
        Ok(0)
    }

    fn put(&mut self, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        self.tier.before("put")?;
        self.rows.extend(keys.iter().copied().zip(rows.iter().map(<[u8]>::to_vec)));
        Ok(())
    }

    fn lookup(&self, batch: Batch<'_>, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()> {
        look_up(&self.rows, batch, rows, misses);
        Ok(())
    }

    fn commit(self: Box<Self>, record: &str, written: Written<'_>) -> Result<u64> {
        self.tier.before("commit")?;
        let number = self.rows.len() as u64;
        written(number / 2);
        *self.table.lock() = MapTable { rows: self.rows, record: Some(record.into()), is_unrecorded: false };
        Ok(number)
    }

    fn interrupt(self: Box<Self>) {
        drop(self.tier.before("interrupt"));
    }
}
