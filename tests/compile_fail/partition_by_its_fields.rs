use bulkhead::domain::ids::TenantId;
use bulkhead::store::Partition;

pub fn forge(mine: Partition, theirs: TenantId) -> Partition {
    Partition { tenant: theirs, ..mine }
}
