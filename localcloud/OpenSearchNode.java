// One OpenSearch node with the k-NN plugin in this process, run from source: java -cp ... OpenSearchNode.java
// HOME HTTP_PORT. It says on standard output when it is ready, and ends when its standard input does.

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import org.opensearch.cluster.service.ClusterService;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.http.HttpServerTransport;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.plugins.Plugin;

public class OpenSearchNode extends Node {
    static final String NAME = "narrows-0";
    static final String[] PLUGINS = {
        "org.opensearch.transport.Netty4Plugin",
        "org.opensearch.analysis.common.CommonAnalysisPlugin",
        "org.opensearch.painless.PainlessPlugin",
        "org.opensearch.index.mapper.MapperExtrasPlugin",
        "org.opensearch.join.ParentJoinPlugin",
        "org.opensearch.index.reindex.ReindexPlugin",
        "org.opensearch.search.aggregations.matrix.MatrixAggregationPlugin",
        "org.opensearch.knn.plugin.KNNPlugin"};

    OpenSearchNode(Environment environment, Collection<Class<? extends Plugin>> plugins) {
        super(environment, plugins, true);
    }

    @Override
    protected void configureNodeAndClusterIdStateListener(ClusterService service) {}

    public static void main(String[] arguments) throws Exception {
        Path home = Path.of(arguments[0]).toAbsolutePath();
        for (String name : List.of("config", "data", "logs", "modules", "plugins")) {
            Files.createDirectories(home.resolve(name));
        }
        Node node = new OpenSearchNode(
            InternalSettingsPreparer.prepareEnvironment(
                settings(home, arguments[1]), Map.of(), home.resolve("config"), () -> NAME),
            plugins());
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                node.close();
            } catch (Exception error) {
                // the process ends in any case
            }
        }));
        node.start();
        int port = node.injector().getInstance(HttpServerTransport.class).boundAddress().publishAddress().getPort();
        System.out.println("{\"ready\": true, \"port\": " + port + "}");
        while (System.in.read() != -1) {}
        System.exit(0);
    }

    static Settings settings(Path home, String port) {
        return Settings.builder()
            .put("path.home", home.toString())
            .put("path.data", home.resolve("data").toString())
            .put("path.logs", home.resolve("logs").toString())
            .put("cluster.name", "narrows")
            .put("node.name", NAME)
            .put("network.host", "127.0.0.1")
            .put("http.port", port)
            .put("transport.port", "0")
            .put("discovery.type", "single-node")
            .put("cluster.routing.allocation.disk.threshold_enabled", false)
            .put("indices.breaker.total.use_real_memory", false)
            .build();
    }

    static List<Class<? extends Plugin>> plugins() throws ClassNotFoundException {
        List<Class<? extends Plugin>> found = new ArrayList<>();
        for (String name : PLUGINS) {
            found.add(Class.forName(name).asSubclass(Plugin.class));
        }
        return found;
    }
}
