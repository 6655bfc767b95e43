package io.quaymaster.example;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.TableEnvironment;
import org.apache.flink.table.api.TableResult;

/**
 * Runs files of SQL statements in a Flink of its own, within this process: for a look, and for the tests. A cluster has
 * {@code sql-client.sh -i tables.sql -f join.sql} for it.
 *
 * <pre>
 * mvn package dependency:copy-dependencies -DincludeScope=runtime
 * java -cp 'target/*:target/dependency/*' io.quaymaster.example.RunSql [TABLE.OPTION=VALUE …] tables.sql join.sql
 * </pre>
 *
 * <p>A setting of the form {@code TABLE.OPTION=VALUE} alters a table after all were made and before anything runs: {@code
 * pns.properties.bootstrap.servers=broker:9092}. Ends with the job that the last statement starts.
 */
public final class RunSql {
    private RunSql() {}

    public static void main(String[] arguments) throws Exception {
        List<String> making = new ArrayList<>();
        List<String> altering = new ArrayList<>();
        List<String> running = new ArrayList<>();
        for (String argument : arguments) {
            if (argument.endsWith(".sql")) {
                for (String statement : statements(argument)) {
                    (statement.startsWith("CREATE TABLE") ? making : running).add(statement);
                }
            } else {
                altering.add(alteration(argument));
            }
        }
        if (running.isEmpty()) {
            System.err.println("usage: RunSql [TABLE.OPTION=VALUE ...] FILE.sql ...");
            System.exit(2);
        }
        Configuration configuration = new Configuration();
        configuration.setString("parallelism.default", "1");
        configuration.setString("rest.port", "0");
        configuration.setString("rest.bind-address", "127.0.0.1");
        TableEnvironment environment =
                TableEnvironment.create(EnvironmentSettings.newInstance().inStreamingMode().withConfiguration(configuration).build());
        making.forEach(environment::executeSql);
        altering.forEach(environment::executeSql);
        TableResult last = null;
        for (String statement : running) {
            if (statement.startsWith("SET ")) {
                String[] pair = statement.substring("SET ".length()).replace("'", "").split("=", 2);
                environment.getConfig().set(pair[0].trim(), pair[1].trim());
            } else {
                last = environment.executeSql(statement);
            }
        }
        if (last != null) {
            last.await();
        }
    }

    /** The statements of a file, without their comments. A statement ends with a semicolon at the end of a line. */
    private static List<String> statements(String file) throws IOException {
        String text = Files.readString(Path.of(file)).replaceAll("(?m)^\\s*--.*$", "");
        return List.of(text.split(";\\s*(\\n|$)")).stream().map(String::strip).filter(each -> !each.isEmpty()).toList();
    }

    private static String alteration(String setting) {
        String[] parts = setting.split("=", 2);
        int dot = parts[0].indexOf('.');
        if (parts.length != 2 || dot < 0) {
            throw new IllegalArgumentException("`" + setting + "` is neither TABLE.OPTION=VALUE nor a file .sql");
        }
        return "ALTER TABLE %s SET ('%s' = '%s')".formatted(parts[0].substring(0, dot), parts[0].substring(dot + 1), parts[1]);
    }
}
