-- Collections of vectors in a Qdrant server: whose they are and what they are called. A name is registered before the
-- collection is made and forgotten after it was deleted, so none is ever there that nobody knows.

-- generations: the last number that was given to a generation of one of its namespaces.
create table vector_collection (
    tenant_id   uuid not null,
    model_id    text not null,
    name        text not null,
    dimension   integer not null check (dimension > 0),
    generations bigint not null default 0,
    created_at  timestamptz not null,
    primary key (tenant_id, model_id)
);

alter table vector_collection enable row level security;
alter table vector_collection force row level security;
revoke all on vector_collection from public;
create policy own_select on vector_collection for select to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_insert on vector_collection for insert to bulkhead_app, bulkhead_owner, bulkhead_control
    with check (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_update on vector_collection for update to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid)
    with check (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_delete on vector_collection for delete to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid);
-- Whose tenants have any: what a sweep begins with. Not their names.
create policy heads_select on vector_collection for select to bulkhead_dispatch using (true);
grant select (tenant_id) on vector_collection to bulkhead_dispatch;
grant select, insert, update, delete on vector_collection to bulkhead_app;
grant select on vector_collection to bulkhead_backup;
