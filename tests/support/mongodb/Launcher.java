import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.h2.H2Backend;
import de.bwaldvogel.mongo.bson.Document;
import de.bwaldvogel.mongo.wire.message.MongoMessage;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.List;

/**
 * A stand-in for MongoDB on loopback, over one file: mongo-java-server says what it can.
 *
 * It speaks with the version of MongoDB 5.0, the oldest that drivers of today take. It checks no account, has no roles
 * and no journal; what it has acknowledged is in its file, so that it survives the end of this process.
 *
 * Arguments: the file, and a port; 0: a free one. The port is printed once it answers.
 */
public final class Launcher {
    /** What is told of the version. */
    private static final class Five implements MongoVersion {
        @Override
        public List<Integer> getVersionArray() {
            return List.of(5, 0, 0);
        }

        @Override
        public int getWireVersion() {
            return 13;
        }
    }

    /** Writes the file before a write is acknowledged, as a journal would. */
    private static final class Durable extends H2Backend {
        Durable(String file) {
            super(file);
        }

        @Override
        public Document handleMessage(MongoMessage message) {
            Document answer = super.handleMessage(message);
            Document asked = message.getDocument();
            if (asked.containsKey("insert") || asked.containsKey("update") || asked.containsKey("delete")
                    || asked.containsKey("createIndexes") || asked.containsKey("dropIndexes")) {
                commit();
            }
            return answer;
        }
    }

    public static void main(String[] arguments) {
        Durable backend = new Durable(arguments[0]);
        backend.version(new Five());
        MongoServer server = new MongoServer(backend);
        server.bind(new InetSocketAddress(InetAddress.getLoopbackAddress(), Integer.parseInt(arguments[1])));
        Runtime.getRuntime().addShutdownHook(new Thread(server::shutdownNow));
        System.out.println(server.getLocalAddress().getPort());
    }
}
