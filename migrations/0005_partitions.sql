-- Room for a second model in a namespace, and for partitions of large namespaces.

-- building: the model that `reembed` fills beside the active one. retired: those that were left, until their rows
-- are gone. homes: the models of which the namespace's embeddings are in partitions of its own.
alter table namespace add column building text, add column retired text[] not null default '{}',
    add column homes text[] not null default '{}';
grant select (model_id, building, homes, chunks) on namespace to bulkhead_dispatch;

-- A job of this kind fills a model's embeddings of one namespace, or of all of a tenant's when none is named.
alter table job add column namespace text, add column model_id text;
alter table job drop constraint job_kind_check;
alter table job add constraint job_kind_check
    check (kind in ('ingest', 'purge_namespace', 'purge_tenant', 'reembed'));
create unique index job_reembed on job (tenant_id) where kind = 'reembed' and state in ('queued', 'running');

-- home says in which leaf of its model's partition a row is: nil, which small namespaces share, or the
-- namespace's own. It is stated by whoever writes, so that a leaf can come and go without a look at the others,
-- and rows move from one leaf to another a few at a time.
alter table chunk_embedding add column home uuid not null default '00000000-0000-0000-0000-000000000000';
alter table chunk_embedding drop constraint chunk_embedding_pkey;
do $$
declare
    leaf text;
    model text;
    own text := 'tenant_id = current_setting(''bulkhead.tenant'')::uuid';
begin
    for leaf in select inhrelid::regclass::text from pg_inherits where inhparent = 'chunk_embedding'::regclass loop
        model := substr(leaf, length('chunk_embedding_') + 1);
        execute format('alter table chunk_embedding detach partition %I', leaf);
        execute format('alter table %I rename to %I', leaf, leaf || '_shared');
        execute format('create table %I (like chunk_embedding including defaults) partition by list (home)', leaf);
        execute format('alter table %I attach partition %I for values in (''00000000-0000-0000-0000-000000000000'')',
            leaf, leaf || '_shared');
        execute format('alter table chunk_embedding attach partition %I for values in (%L)', leaf, model);
        execute format('alter table %I enable row level security', leaf);
        execute format('alter table %I force row level security', leaf);
        execute format('revoke all on %I from public', leaf);
        execute format('grant select on %I to bulkhead_backup', leaf);
        execute format('create policy own_select on %I for select to bulkhead_owner using (%s)', leaf, own);
        execute format('create policy own_insert on %I for insert to bulkhead_owner with check (%s)', leaf, own);
        execute format('create policy own_update on %I for update to bulkhead_owner using (%s) with check (%s)', leaf, own, own);
        execute format('create policy own_delete on %I for delete to bulkhead_owner using (%s)', leaf, own);
    end loop;
end $$;
alter table chunk_embedding add primary key (tenant_id, namespace_id, model_id, chunk_id, home);
