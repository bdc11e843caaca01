import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;

/**
 * Does COUNT units of work under `leasehold run`. Each is a PUT to URL, with the fencing token.
 *
 *     leasehold run --lock NAME -- java Run.java URL COUNT
 */
public class Run {
    static final String TOKEN = System.getenv("LEASEHOLD_TOKEN");
    static final Path DEADLINE = Path.of(System.getenv("LEASEHOLD_DEADLINE_FILE"));
    /** No unit of work takes longer. */
    static final Duration UNIT = Duration.ofMillis(500);
    static volatile boolean stop;

    static String[] words(Path file) throws IOException {
        return Files.readString(file).trim().split(" ");
    }

    /** For how many milliseconds it is held; less than 0 once it is lost. */
    static double left() throws IOException {
        var deadline = words(DEADLINE);
        var uptime = words(Path.of("/proc/uptime"));
        boolean lost = deadline[1].equals("lost");
        return lost ? -1 : 1000 * (Double.parseDouble(deadline[0]) - Double.parseDouble(uptime[0]));
    }

    public static void main(String[] args) throws Exception {
        // SIGTERM, since the lock is lost or somebody wants us to end: the unit that was begun is finished.
        var worker = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            stop = true;
            try {
                worker.join();
            } catch (InterruptedException error) {
                Thread.currentThread().interrupt();
            }
        }));
        var http = HttpClient.newHttpClient();
        var put = HttpRequest.newBuilder(URI.create(args[0])).timeout(UNIT).header("Fencing-Token", TOKEN)
            .PUT(BodyPublishers.ofString("worked")).build();
        for (int unit = 0; unit < Integer.parseInt(args[1]); unit++) {
            if (stop || left() < UNIT.toMillis()) {
                throw new IllegalStateException("stopped before the end");
            }
            int code = http.send(put, BodyHandlers.discarding()).statusCode();
            if (code != 200) {
                throw new IllegalStateException("refused: " + code);
            }
        }
    }
}
