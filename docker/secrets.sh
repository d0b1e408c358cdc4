#!/usr/bin/env bash
# Makes what compose.yaml gives to the containers as secrets, into docker/secrets or the folder that is named: a
# certificate authority, a certificate for each service, passwords, and the files that hold them in each service's form.
# Nothing that is there is made anew, so that it may be run again. Wants openssl 3.
#
# The folder is open to its owner alone. The files in it can be read by all, since every container has a user of its own
# and sees only the files that compose.yaml gives to it.
set -euo pipefail
umask 022
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

write() { # FILE, the text on standard input; whole or not at all
    [ -e "$1" ] && { cat >/dev/null; return; }
    cat >"$1.new"
    mv "$1.new" "$1"
}

password() { # FILE
    openssl rand -hex 24 | write "$1"
}

certificate() { # NAME of a service, which is also its host name
    [ -e "$1.pem" ] && return
    openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1-key.pem"
    openssl req -new -key "$1-key.pem" -subj "/CN=$1" -out "$1.csr"
    printf 'subjectAltName=DNS:%s,DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n' \
        "$1" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 825 -sha256 -extfile "$1.ext" \
        -out "$1.pem.new" 2>/dev/null
    rm "$1.csr" "$1.ext"
    chmod 644 "$1-key.pem"
    mv "$1.pem.new" "$1.pem"
}

if [ ! -e ca.pem ]; then
    openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ca-key.pem
    chmod 600 ca-key.pem # no container has it
    openssl req -x509 -new -key ca-key.pem -subj '/CN=Bulkhead services' -days 3650 -sha256 \
        -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign -out ca.pem.new
    mv ca.pem.new ca.pem
fi
for service in postgres qdrant mongodb redis neo4j; do certificate "$service"; done
for name in postgres-password qdrant-api-key mongodb-root-password mongodb-writer-password mongodb-reader-password \
    redis-password neo4j-password; do password "$name"; done

write postgres-url <<END
postgres://postgres:$(cat postgres-password)@postgres:5432/postgres?sslmode=verify-full&sslrootcert=/run/secrets/ca
END
write qdrant.yaml <<END
service:
  api_key: $(cat qdrant-api-key)
  jwt_rbac: true
  enable_tls: true
tls:
  cert: /run/secrets/qdrant-certificate
  key: /run/secrets/qdrant-key
END
cat mongodb.pem mongodb-key.pem | write mongodb-both.pem
for account in writer reader; do
    name=mongodb-url
    [ "$account" = reader ] && name=mongodb-reader-url
    write "$name" <<END
mongodb://bulkhead-$account:$(cat "mongodb-$account-password")@mongodb:27017/?authSource=bulkhead&tls=true&tlsCAFile=/run/secrets/ca
END
done
# No more than what docs/services.md lists; the default user may ask whether it lives.
write redis.acl <<END
user default on nopass resetkeys resetchannels -@all +ping
user bulkhead on >$(cat redis-password) resetchannels ~bulkhead:* -@all +evalsha +script|load +get +set +del +scan +unlink +time
END
printf 'neo4j/%s\n' "$(cat neo4j-password)" | write neo4j-auth
echo "secrets are in $folder"
