-- Forced row-level security with a policy for each command, and the least grants.
-- The setting is read without missing_ok: a transaction without a tenant fails, it does not see nothing.

do $$
declare
    t text;
    own text := 'tenant_id = current_setting(''bulkhead.tenant'')::uuid';
begin
    foreach t in array array[
        'tenant', 'api_key', 'operator_key', 'audit_event', 'audit_head', 'namespace', 'document',
        'document_version', 'chunk', 'chunk_embedding', 'chunk_mention', 'term_frequency', 'outbox',
        'consumer', 'job', 'idempotency'
    ] loop
        execute format('alter table %I enable row level security', t);
        execute format('alter table %I force row level security', t);
        execute format('revoke all on %I from public', t);
        -- Credentials belong to `control` and `auth` alone, whose policies follow.
        continue when t in ('tenant', 'api_key', 'operator_key');
        execute format('create policy own_select on %I for select to bulkhead_app, bulkhead_owner, bulkhead_control using (%s)', t, own);
        execute format('create policy own_insert on %I for insert to bulkhead_app, bulkhead_owner, bulkhead_control with check (%s)', t, own);
        execute format('create policy own_update on %I for update to bulkhead_app, bulkhead_owner, bulkhead_control using (%s) with check (%s)', t, own, own);
        execute format('create policy own_delete on %I for delete to bulkhead_app, bulkhead_owner, bulkhead_control using (%s)', t, own);
    end loop;

    -- Rows of several tenants, for those whose work it is. The catalogue test holds the same list.
    foreach t in array array['tenant', 'api_key', 'operator_key'] loop
        execute format('create policy every_select on %I for select to bulkhead_auth, bulkhead_control using (true)', t);
        execute format('create policy every_insert on %I for insert to bulkhead_control with check (true)', t);
        execute format('create policy every_update on %I for update to bulkhead_control using (true) with check (true)', t);
        execute format('create policy every_delete on %I for delete to bulkhead_control using (true)', t);
    end loop;
end $$;

-- The deployment's own events are `control`'s alone.
create policy not_deployment on audit_event as restrictive to bulkhead_app
    using (tenant_id <> '00000000-0000-0000-0000-000000000000')
    with check (tenant_id <> '00000000-0000-0000-0000-000000000000');
create policy not_deployment on audit_head as restrictive to bulkhead_app
    using (tenant_id <> '00000000-0000-0000-0000-000000000000')
    with check (tenant_id <> '00000000-0000-0000-0000-000000000000');

create policy heads_select on job for select to bulkhead_dispatch using (true);
create policy heads_update on job for update to bulkhead_dispatch using (true) with check (true);
create policy heads_select on namespace for select to bulkhead_dispatch using (true);
create policy heads_select on consumer for select to bulkhead_dispatch using (true);
create policy heads_select on outbox for select to bulkhead_dispatch using (true);
create policy heads_delete on outbox for delete to bulkhead_dispatch using (true);

grant select, insert, update, delete on
    namespace, document, document_version, chunk, chunk_embedding, chunk_mention, term_frequency, outbox,
    consumer, job, idempotency
    to bulkhead_app;
grant select, insert on audit_event to bulkhead_app, bulkhead_control;
grant select, insert, update on audit_head to bulkhead_app, bulkhead_control;

grant select (tenant_id, slug, state) on tenant to bulkhead_auth;
grant select (tenant_id, key_id, digest, roles, namespaces, expires_at, revoked_at) on api_key to bulkhead_auth;
grant select (key_id, digest, expires_at, revoked_at) on operator_key to bulkhead_auth;

grant select, insert, update on tenant, api_key, operator_key to bulkhead_control;
grant delete on api_key to bulkhead_control;
grant select, insert on job to bulkhead_control;

-- Heads only: no document, no name, no text.
grant select (tenant_id, job_id, namespace_id, kind, state, cost, attempts, lease, leased_until, due_at)
    on job to bulkhead_dispatch;
grant update (state, attempts, lease, leased_until, due_at, updated_at) on job to bulkhead_dispatch;
grant select (tenant_id, namespace_id, seq) on namespace to bulkhead_dispatch;
grant select (tenant_id, namespace_id, consumer, seq, updated_at) on consumer to bulkhead_dispatch;
grant select (tenant_id, namespace_id, seq), delete on outbox to bulkhead_dispatch;

grant select on all tables in schema public to bulkhead_backup;
