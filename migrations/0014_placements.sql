-- A second placement of vectors in a Qdrant server, a collection that several tenants share, and moves between the two.

-- state: served, written (by a move, to be served later), or left (what the tenant has in it is to be removed).
-- moves: how many moves have begun to write it, so that one that was overtaken serves nothing.
-- The rows there are keep the defaults: a collection of the tenant's own, which is served.
alter table vector_collection
    add column placement  text not null default 'own' check (placement in ('own', 'shared')),
    add column state      text not null default 'served' check (state in ('served', 'written', 'left')),
    add column moves      bigint not null default 0,
    add column changed_at timestamptz;
alter table vector_collection drop constraint vector_collection_pkey;
alter table vector_collection add primary key (tenant_id, model_id, name);
create unique index vector_collection_served on vector_collection (tenant_id, model_id) where state = 'served';
-- How many collections of tenants' own there are.
grant select (tenant_id, placement) on vector_collection to bulkhead_dispatch;

-- What an operator chose for a tenant; without a row, it is decided when the tenant's first point comes.
create table vector_placement (
    tenant_id uuid primary key,
    placement text not null check (placement in ('own', 'shared')),
    chosen_at timestamptz not null
);

alter table vector_placement enable row level security;
alter table vector_placement force row level security;
revoke all on vector_placement from public;
create policy own_select on vector_placement for select to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_insert on vector_placement for insert to bulkhead_app, bulkhead_owner, bulkhead_control
    with check (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_update on vector_placement for update to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid)
    with check (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_delete on vector_placement for delete to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid);
grant select, insert, update, delete on vector_placement to bulkhead_app;
grant select on vector_placement to bulkhead_backup;
