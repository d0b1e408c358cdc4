-- Heads of chains whose events are kept in another log than this database's: a cut end of that log shows here.
-- number and hash: the last event of the chain that is known to be there. spool and position: up to which record of
-- which server's spool it holds, changed with them, so that no record is put into the chain twice.
create table audit_anchor (
    tenant_id uuid not null,
    node      text not null,
    number    bigint not null check (number >= 0),
    hash      bytea not null check (length(hash) = 32),
    spool     uuid,
    position  bigint not null default 0,
    primary key (tenant_id, node)
) with (fillfactor = 50);

alter table audit_anchor enable row level security;
alter table audit_anchor force row level security;
revoke all on audit_anchor from public;
create policy own_select on audit_anchor for select to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_insert on audit_anchor for insert to bulkhead_app, bulkhead_owner, bulkhead_control
    with check (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_update on audit_anchor for update to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid)
    with check (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_delete on audit_anchor for delete to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid);
-- The deployment's own are `control`'s alone.
create policy not_deployment on audit_anchor as restrictive to bulkhead_app
    using (tenant_id <> '00000000-0000-0000-0000-000000000000')
    with check (tenant_id <> '00000000-0000-0000-0000-000000000000');
grant select, insert, update on audit_anchor to bulkhead_app, bulkhead_control;
grant select on audit_anchor to bulkhead_backup;

-- Whose events wait to be forwarded: ids and numbers alone.
create policy heads_select on audit_anchor for select to bulkhead_dispatch using (true);
create policy heads_select on audit_head for select to bulkhead_dispatch using (true);
grant select (tenant_id, node, number) on audit_anchor, audit_head to bulkhead_dispatch;
